"""Tables of users: all they hold is read or refused, and no path leads out of their folder."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import RATE_HZ, check_refusal, tone

from spatial_clap_jax.acoustics.measured_rirs import load_measured_rirs
from spatial_clap_jax.data.audio import read_audio
from spatial_clap_jax.data.event_tables import check_table, read_events
from spatial_clap_jax.data.recordings import read_recordings
from spatial_clap_jax.data.sentences import captions_of
from spatial_clap_jax.data.sources import SourceOptions, open_source
from spatial_clap_jax.errors import InputError

CLIPS = "filename,caption,category,fold,split,recording,youtube_id,start_time"
RIRS = "filename,azimuth_deg,elevation_deg,distance_m,room"
CELLS = st.one_of(
    st.sampled_from(["", "a.wav", "1", "-9", "train", "nan", "9" * 5000, "../a.wav", "²"]),
    st.sampled_from(['"', '"open', 'a"b', '"a"b', "'"]),
    st.text(max_size=12),
)
TABLES = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda header, rows, end: end.join([header, *(",".join(row) for row in rows)]).encode(
            "utf-8", "surrogatepass"
        ),
        st.sampled_from([CLIPS, RIRS, "filename,caption,wrong_captions", "caption", "a,a", ""]),
        st.lists(st.lists(CELLS, max_size=9), max_size=4),
        st.sampled_from(["\n", "\r\n", "\r"]),
    ),
    st.builds(
        lambda rows, code: f"{CLIPS}\n{rows}".encode(code, "replace"),
        st.text(max_size=40),
        st.sampled_from(["utf-16", "utf-16-le", "latin-1", "utf-8-sig"]),
    ),
)


@settings(max_examples=150)
@given(TABLES)
def test_any_table_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any_table.csv"
    path.write_bytes(content)
    for read in (
        lambda: open_source(str(path)).fingerprint(),
        lambda: open_source(str(path), SourceOptions(caption_columns=("category",))),
        lambda: captions_of(path),
        lambda: read_recordings(path),
        lambda: load_measured_rirs(path, RATE_HZ),
        lambda: read_events(path, 3, 10),
    ):
        try:
            read()
        except InputError as error:
            check_refusal(error)


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A folder with sounds, and links out of it to one that is three times as loud."""
    root = tmp_path_factory.mktemp("house")
    inside = root / "inside"
    (inside / "sub").mkdir(parents=True)
    soundfile.write(root / "secret.wav", 1.9 * tone(800, 2), RATE_HZ)
    for path in (inside / "a.wav", inside / "sub" / "a.wav"):
        soundfile.write(path, 0.3 * tone(800, 2), RATE_HZ)
    (inside / "link.wav").symlink_to(root / "secret.wav")
    (inside / "near.wav").symlink_to("a.wav")
    (inside / "out").symlink_to(root)
    (inside / "loop").symlink_to("loop")
    (inside / "zero.wav").symlink_to("/dev/zero")
    os.mkfifo(inside / "pipe.wav")
    return inside


WAYS_OUT = (
    *("link.wav", "out/secret.wav", "../secret.wav", "sub/../../secret.wav"),
    *("out/inside/../secret.wav", "./out//secret.wav", "..\\secret.wav", "sub/../link.wav"),
)
NAMES = st.sampled_from(WAYS_OUT).map(lambda name: name.split("/")) | st.lists(
    st.sampled_from(
        [
            *("..", ".", "", "sub", "a.wav", "near.wav", "link.wav", "out", "inside", "secret.wav"),
            *("loop", "zero.wav", "pipe.wav", "~", "C:", "x" * 300, "\\", "a.wav\0"),
        ]
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=120)
@given(NAMES, st.sampled_from(["/", "\\", "//"]), st.booleans())
def test_no_path_of_a_table_leads_out_of_its_folder(house, parts, slash, absolute):
    name = slash.join(parts)
    name = f"{house}/{name}" if absolute else name
    csv = house / "table.csv"
    sounds = []

    def of_clips() -> None:
        csv.write_text(f'filename,caption\n"{name}",x\n')
        source = open_source(str(csv), SourceOptions(stereo_clips="first"))
        sounds.extend(source.load(clip, RATE_HZ) for clip in source.clips)

    def of_audiocaps() -> None:
        csv.write_text(f'youtube_id,start_time,caption\n"{name}","0",x\n')
        source = open_source(str(csv), SourceOptions(stereo_clips="first"))
        sounds.extend(source.load(clip, RATE_HZ) for clip in source.clips)

    def of_recordings() -> None:
        csv.write_text(f'filename,caption,wrong_captions\n"{name}",x,\n')
        sounds.extend(read_audio(one.path)[0] for one in read_recordings(csv))

    def of_responses() -> None:
        csv.write_text(f'{RIRS}\n"{name}",0,0,1,hall\n')
        sounds.extend(room.rirs for room in load_measured_rirs(csv, RATE_HZ))

    for read in (of_clips, of_audiocaps, of_recordings, of_responses):
        try:
            read()
        except InputError as error:
            check_refusal(error)
    assert all(np.abs(sound).max() < 0.5 for sound in sounds), name


def read_first(csv: Path) -> None:
    source = open_source(str(csv))
    source.load(source.clips[0], RATE_HZ)


@pytest.mark.parametrize("name", ["link.wav", "out/secret.wav", "../secret.wav"])
def test_links_and_dots_that_lead_out_are_refused_by_name(house, name):
    csv = house / "named.csv"
    csv.write_text(f"{RIRS}\n{name},0,0,1,hall\n")
    with pytest.raises(InputError, match=r"named\.csv: row 2: .* leaves the csv's folder"):
        load_measured_rirs(csv, RATE_HZ)
    csv.write_text(f"filename,caption,wrong_captions\n{name},x,\n")
    with pytest.raises(InputError, match="leaves the csv's folder; give paths inside it"):
        read_recordings(csv)
    csv.write_text(f"filename,caption\n{name},x\n")
    with pytest.raises(InputError, match=r"leaves (the csv's folder|.*; copy the file there)"):
        read_first(csv)


def test_a_table_must_be_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for name, kind in (("pipe.csv", "pipe"), ("zero.csv", "device"), ("", "folder")):
        path = tmp_path / name
        with pytest.raises(InputError, match=rf"(is a {kind}|is a .*{kind}|no such file)"):
            open_source(str(path))
        with pytest.raises(InputError, match=kind):
            read_events(path, 3, 10)
        with pytest.raises(InputError, match=kind):
            read_recordings(path)
        with pytest.raises(InputError, match=kind):
            load_measured_rirs(path, RATE_HZ)


def test_numbers_that_no_array_holds_are_refused():
    header = "frame,class,source,azimuth,distance,onscreen\n"
    for cell in ("9" * 30, str(-(2**63)), "9" * 5000):
        table = f"{header}0,0,0,{cell},100,1\n".encode()
        with pytest.raises(InputError, match=r"t\.csv: line 2: .* no integer, or a huge one"):
            check_table("t.csv", table, 3, 10)


def test_a_fold_of_thousands_of_digits_is_refused(tmp_path):
    (tmp_path / "c.csv").write_text(f"filename,caption,fold\na.wav,x,{'9' * 5000}\n")
    with pytest.raises(InputError, match=r"row 2: fold '999999999'\.\.\. is no fold; number the"):
        open_source(str(tmp_path / "c.csv"))


def test_utf_16_without_a_mark_is_told_as_such(tmp_path):
    (tmp_path / "c.csv").write_bytes("filename,caption\na.wav,x\n".encode("utf-16-le"))
    with pytest.raises(
        InputError, match=r"the header holds NUL bytes, as UTF-16 does; save the csv as"
    ):
        open_source(str(tmp_path / "c.csv"))
