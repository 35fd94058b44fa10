"""Groups of a pretrained directory that are adapters over a network beside them.

A distilled flow that was trained by adapters is its teacher's DiT and a few hundred kB.
GROUP.safetensors then holds the adapters, and `derived` in config.json names by group
the network of the directory, GROUP/NETWORK, that the group's own begins with.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from flowtok_jax.array_types import Params
from flowtok_jax.models.lora import merge_on_host
from flowtok_jax.runtime.digests import params_sha256
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, local_file
from flowtok_jax.weights.lora import Lora, save_lora
from flowtok_jax.weights.safetensors import (
    check_file,
    file_of,
    read_safetensors,
    shapes_of,
)


class Derived(NamedTuple):
    """A group of one network, as adapters.

    Attributes:
        over: GROUP/NETWORK of the same directory.
    """

    lora: Lora
    over: str

    def read(self, directory: Place) -> Params:
        """Computes the group's parameters.

        Raises:
            UserError: where the directory has other weights than the adapters were
                made over, or none.
        """
        base = self._read_base(directory)
        self.lora.check(base)
        if params_sha256(base) != self.lora.base_sha256:
            raise UserError(
                f"{self.lora.path} was made over another {self.over} than that of the "
                "file beside it; expected both files of one directory"
            )
        return _merged(base, self.lora)

    def save(self, directory: Place, dtype: str) -> None:
        """Writes the adapters beside the file of what they are over.

        Raises:
            UserError: where float16 cannot hold one.
        """
        lora = self.lora
        base = self._read_base(directory)  # as it is stored, so in float16 too
        path = directory / file_of(lora.group)
        save_lora(path, lora.group, lora.adapters, lora.options, base, dtype)

    def _read_base(self, directory: Place) -> Params:
        group, _, network = self.over.partition("/")
        path = directory / file_of(group)
        check_file(path)
        start = f"{network}/"
        with local_file(path) as file:
            found = {
                name.removeprefix(start): np.array(leaf, np.float32)
                for name, leaf in read_safetensors(file).items()
                if name.startswith(start)
            }
        if not found:
            raise UserError(f"{path} has no {network}, over which {self.lora.path} is")
        if len(self.lora.adapters) != 1:
            raise UserError(
                f"{self.lora.path} has adapters of {len(self.lora.adapters)} networks; "
                f"expected one, over {self.over} of the file beside it"
            )
        (name,) = self.lora.adapters
        return {name: unflatten_dict(found, sep="/")}


def find_derived(
    adapters: Mapping[str, Lora], params: Mapping[str, Params]
) -> dict[str, Derived]:
    """Finds what adapters are over, among the parameters of all groups.

    Args:
        adapters: by the group that they make.

    Returns:
        Those that make their group of a network of another one, exactly: of groups or
        networks that were changed since they were loaded there is none.
    """
    found = {}
    for name, lora in adapters.items():
        if over := _find_over(lora, params):
            found[name] = Derived(lora, over)
    return found


def _find_over(lora: Lora, params: Mapping[str, Params]) -> str:
    wanted = params.get(lora.group, {})
    if len(wanted) != 1 or set(wanted) != set(lora.adapters):
        return ""
    ((name, own),) = wanted.items()
    for group, networks in params.items():
        for network, base in networks.items():
            if group == lora.group or shapes_of(base) != shapes_of(own):
                continue
            same = jax.tree.map(np.array_equal, _merged({name: base}, lora), wanted)
            if all(jax.tree.leaves(same)):
                return f"{group}/{network}"
    return ""


def _merged(base: Params, lora: Lora) -> Params:
    return merge_on_host(base, lora.adapters, lora.options.scale)
