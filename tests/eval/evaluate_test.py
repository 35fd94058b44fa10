import re

from flowtok_jax.eval.evaluate import name_of
from flowtok_jax.eval.parts import Part


class Named(Part):
    compute = measure = picture = None  # not asked for

    name, count = "t2i", 24

    def __init__(self, **protocol):
        self.protocol = {"data": "folder:my photos/x", "seed": 0, **protocol}


def test_another_protocol_is_another_name():
    names = [name_of(Named(**x)) for x in ({}, {}, {"seed": 1}, {"sampler": {"a": 1}})]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert re.fullmatch("t2i_folder_my_photos_x_n24_[0-9a-f]{8}", names[0])
