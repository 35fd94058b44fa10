"""What a source string means: an existing path goes before syntax."""

import pytest

from flowtok_jax.data.source_strings import parse_sources
from flowtok_jax.data.sources import make_source
from flowtok_jax.runtime.errors import UserError
from tests.data import made


def test_the_grammar():
    text = "tars:{a,b}/{0..3}.tar@2,folder:x@1e-1,shapes,karpathy:a:b:c,shapes:seen"
    assert [tuple(part) for part in parse_sources(text)] == [
        ("tars", "{a,b}/{0..3}.tar", 2.0),
        ("folder", "x", 0.1),
        ("shapes", "", None),
        ("karpathy", "a:b:c", None),
        ("shapes", "seen", None),
    ]
    assert parse_sources("tars:gs://b/x@y/*.tar")[0].arguments == "gs://b/x@y/*.tar"


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "x", ""])
def test_weights_that_cannot_be(weight):
    with pytest.raises(UserError, match=f"has the weight '{weight}'"):
        parse_sources(f"shapes@{weight}")


@pytest.mark.parametrize("spec", ["", ",shapes", "shapes,", ":x"])
def test_no_kind_is_refused_with_what_there_is(spec):
    with pytest.raises(UserError, match="^no source of data named; .*tars.*folder:"):
        parse_sources(spec)


@pytest.mark.parametrize("spec", ["webdata:x", "shape", "photos"])
def test_kinds_that_are_not_known(spec):
    with pytest.raises(
        UserError, match="is of kind .*; expected one of shapes, folder, tars"
    ):
        parse_sources(spec)


def test_a_source_without_arguments_is_refused():
    with pytest.raises(UserError, match="says not of what"):
        parse_sources("folder")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(folder):
    """Makes a folder with one captioned picture, and returns it."""
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(made.encode(made.picture(8, 8)))
    (folder / "a.txt").write_text(f"a picture in {folder.name}")
    return folder


def parsed(spec):
    return [tuple(part) for part in parse_sources(spec)]


ODD = [
    "a@2",
    "cats, dogs",
    "colors,shapes",
    "a,folder:b",
    "{x,y}",
    "x@y.z",
    " a ",
    "'a",
]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("before", ["", "./", "{here}/"])
def test_a_folder_that_exists_goes_before_syntax(here, name, before):
    put(here / name)
    path = before.replace("{here}", str(here)) + name
    assert parsed(f"folder:{path}") == [("folder", path, None)]
    assert parsed(f"folder:{path}@3") == [("folder", path, 3.0)]
    both = f"folder:{path},shapes:seen"
    assert parsed(both) == [("folder", path, None), ("shapes", "seen", None)]
    both = f"shapes@2,folder:{path}@1"
    assert parsed(both) == [("shapes", "", 2.0), ("folder", path, 1.0)]
    source = make_source(f"folder:{path}", image_size=8, seed=0)
    assert source[0]["caption"] == f"a picture in {name}".strip()


@pytest.mark.parametrize(
    "name", ["a@2.tar", "cats, dogs.tar", "b[1]@2", "x, y/a@1.tar"]
)
def test_a_tar_that_exists_goes_before_syntax(here, name):
    path = here / name
    path.parent.mkdir(exist_ok=True)
    made.write_tar(path, made.pairs(2))
    assert parsed(f"tars:{name},shapes") == [
        ("tars", name, None),
        ("shapes", "", None),
    ]
    assert parsed(f"tars:{path.parent}/*") == [("tars", f"{path.parent}/*", None)]
    source = make_source(f"tars:{path}@2", image_size=8, seed=0, cache=str(here / "c"))
    assert len(source) == 2


def test_a_pattern_below_a_folder_with_a_comma_is_one_source(here):
    made.write_tar(put(here / "cats, [2024] {x}") / "0.tar", made.pairs(1))
    spec = f"tars:{here}/cats, [2024] {{x}}/*.tar"
    assert parsed(f"{spec}@2,shapes") == [
        ("tars", spec.removeprefix("tars:"), 2.0),
        ("shapes", "", None),
    ]
    assert len(make_source(spec, image_size=8, seed=0, cache=str(here / "c"))) == 1


@pytest.mark.parametrize(
    ("names", "spec", "ways"),
    [
        (["a", "a@2"], "folder:a@2", 'folder:"a@2" or folder:"a"@2'),
        (["x", "x,shapes"], "folder:x,shapes", 'folder:"x,shapes" or folder:"x"'),
        (["a ", "a"], "folder:a ", 'folder:"a " or folder:"a"'),
        (["a, b@2", "a, b"], "folder:a, b@2", 'folder:"a, b@2" or folder:"a, b"@2'),
    ],
)
def test_what_means_two_things_that_exist_is_refused(here, names, spec, ways):
    for name in names:
        put(here / name)
    with pytest.raises(
        UserError, match=f"means two things .*; expected quotes: {ways}"
    ):
        parse_sources(spec)
    for way in ways.split(" or "):
        (part,) = parse_sources(way)
        assert part.arguments == way.partition(":")[2].removesuffix("@2")
        assert make_source(way, image_size=8, seed=0)[0]["caption"].startswith("a pic")


def test_a_pattern_that_means_two_things_keeps_its_wildcards_outside_quotes(here):
    for name in ("a", "a,folder:b"):
        made.write_tar(put(here / name) / "0.tar", made.pairs(1))
        (here / name / "0@2").touch()
    message = 'tars:"a,folder:b"/[*] or tars:"a"'
    with pytest.raises(UserError, match=f"means two things .*: {message}"):
        parse_sources("tars:a,folder:b/*")


def test_quotes_keep_every_character_of_a_path():
    assert parsed('folder:"/x/cats, dogs@2"@3,folder:\'/y/"a",b\'') == [
        ("folder", '"/x/cats, dogs@2"', 3.0),
        ("folder", "'/y/\"a\",b'", None),
    ]
    assert parsed('tars:"/d/a, b"/{0..3}.tar , shapes') == [
        ("tars", '"/d/a, b"/{0..3}.tar', None),
        ("shapes", "", None),
    ]
    assert parsed('karpathy:"/d/a,b.json":"/i,m":test@2') == [
        ("karpathy", '"/d/a,b.json":"/i,m":test', 2.0)
    ]
    assert parsed('latents:"gs://b/[x]@2.tar"') == [
        ("latents", '"gs://b/[x]@2.tar"', None)
    ]
    with pytest.raises(
        UserError, match=r'^source folder:"/x/a has no closing quote; expected'
    ):
        parse_sources('folder:"/x/a')


def test_karpathys_json_and_folder_may_have_commas(here):
    put(here / "my, images")
    (here / "a,b.json").write_text(
        '{"images": [{"split": "test", "filename": "a.png",'
        ' "sentences": [{"raw": "one"}]}]}'
    )
    spec = f"karpathy:{here}/a,b.json:{here}/my, images:test@2"
    (part, _) = parse_sources(f"{spec},shapes")
    assert (part.spec, part.weight) == (spec.removesuffix("@2"), 2.0)
    assert make_source(spec, image_size=8, seed=0)[0]["caption"] == "one"


def test_home_and_urls_are_replaced(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    put(here / "my photos")
    for path in ("~/my photos", '"~/my photos"', f"file://{here}/my%20photos/"):
        source = make_source(f"folder:{path}", image_size=8, seed=0)
        assert source[0]["caption"] == "a picture in my photos"
    made.write_tar(here / "my photos" / "0.tar", made.pairs(3))
    options = {"image_size": 8, "seed": 0, "cache": "~/indices"}
    assert len(make_source("tars:~/my photos/*.tar", **options)) == 3
    assert list((here / "indices").iterdir())
    assert not (here / "~").exists()


@pytest.mark.parametrize(
    ("spec", "cure"),
    [
        ("{here}/photos", "folder:{here}/photos,"),
        ("photos", "folder:photos,"),
        ("~/photos", "folder:~/photos,"),
        ("./photos/", "folder:./photos/,"),
        ("photos/a.png", "folder:photos,"),
        ("photos/*.png", "folder:photos,"),
        ("nowhere/photos", "folder:nowhere/photos,"),
        ("packed", r"tars:packed/\*.tar,"),
        ("packed/*.tar", r"tars:packed/\*.tar,"),
        ("packed/0.tar@2", "tars:packed/0.tar,"),
        ("shards/", r"arrayrecord:shards/\*.arrayrecord"),
        ("gs://bucket/train", r"tars:gs://bucket/train/\*.tar"),
        ("x/dataset_coco.json", "karpathy:x/dataset_coco.json:IMAGEDIR:SPLIT"),
        ("file:///x/photos", "folder:file:///x/photos"),
    ],
)
def test_a_path_without_a_kind_is_refused_with_the_kind(here, spec, cure, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    put(here / "photos")
    for name in ("packed/0.tar", "shards/0.arrayrecord"):
        (here / name).parent.mkdir()
        (here / name).touch()
    spec, cure = (text.replace("{here}", str(here)) for text in (spec, cure))
    with pytest.raises(UserError, match=f"has no kind; expected {cure}"):
        parse_sources(spec)


def test_a_comma_in_a_path_that_does_not_exist_is_told(here):
    message = (
        "^source 'dogs' is of kind 'dogs', and 'folder:cats, dogs' names no path that "
        "exists; expected one of"
    )
    with pytest.raises(UserError, match=message):
        parse_sources("folder:cats, dogs")
    with pytest.raises(UserError, match="'/b' has no kind, and .*expected folder:/b"):
        parse_sources("folder:/a,/b")


def test_an_at_sign_in_a_path_that_does_not_exist_is_told():
    message = "has the weight 'home'; expected a number above 0, and /x/me@home does"
    with pytest.raises(UserError, match=message):
        parse_sources("folder:/x/me@home")
    assert parsed("tars:gs://b/a@2.tar") == [("tars", "gs://b/a@2.tar", None)]
    assert parsed("tars:gs://b/*.tar@2") == [("tars", "gs://b/*.tar", 2.0)]


def test_spaces_around_a_source_are_no_part_of_it():
    assert parsed(" shapes , folder: x@2 ,\n tars:y ") == [
        ("shapes", "", None),
        ("folder", "x", 2.0),
        ("tars", "y", None),
    ]


@pytest.mark.parametrize("path", ["a\0b", "\ud83d", "C:\\photos", "~nobody_here/x"])
def test_paths_that_cannot_be_are_refused(path):
    with pytest.raises(UserError, match="is no path|of Windows|no such user"):
        make_source(f"folder:{path}", image_size=8, seed=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tar:x/*.tar", r"of kind 'tar' \(is it tars:x/\*\.tar\?\); expected one of"),
        ("Folder:x", r"of kind 'Folder' \(is it folder:x\?\); expected one of"),
        ("folder x", "of kind 'folder x'; expected one of"),
        ("'folder:my photos'", "begins with a quote or bracket"),
        ("['folder:x']", "begins with a quote or bracket"),
        ("\u201cfolder:x\u201d", "begins with a quote or bracket"),
        ("folder:\u201cx\u201d", "no closing quote; .* in straight quotes"),
        ("folder:x;folder:y", "does not exist; several sources are joined by commas"),
        ("folder:x tars:y", "does not exist; several sources are joined by commas"),
        ("C:\\photos", "a path of Windows"),
        ("folder:", "says not of what"),
    ],
)
def test_slips_are_named(here, spec, message):
    with pytest.raises(UserError, match=message):
        parse_sources(spec)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("photos/a.png", "folder:photos"),
        ("photos/*.png", "folder:photos"),
        ("photos/0.tar", "tars:photos/0.tar"),
        ("photos/*.tar", r"tars:photos/\*.tar"),
    ],
)
def test_a_folder_that_is_none_is_refused_with_the_source(here, path, source):
    made.write_tar(put(here / "photos") / "0.tar", made.pairs(1))
    with pytest.raises(UserError, match=f"that is no folder; expected {source}$"):
        make_source(f"folder:{path}", image_size=8, seed=0)


def test_a_files_mark_is_no_part_of_a_source():
    assert parsed("\ufefffolder:x") == [("folder", "x", None)]
