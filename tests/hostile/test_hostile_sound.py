"""Sound and video files: cut, flipped or lying, they are read or refused, and fill no memory."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from inputs import AUDIO_FORMATS, RATE_HZ, check_refusal, make_audio, tone

from spatial_clap_jax.acoustics.measured_rirs import load_measured_rirs
from spatial_clap_jax.data.audio import read_audio
from spatial_clap_jax.data.video import frames_at, write_video
from spatial_clap_jax.errors import InputError

RIRS = "filename,azimuth_deg,elevation_deg,distance_m,room"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, bytes]:
    """The bytes of a good file of each format, by name."""
    files = {}
    for name, subtype in AUDIO_FORMATS:
        folder = tmp_path_factory.mktemp("sound")
        make_audio(name, subtype, folder)
        files[f"{subtype}.{name[2:]}"] = (folder / name).read_bytes()
    return files


@given(
    st.integers(0, len(AUDIO_FORMATS) - 1),
    st.floats(0, 1),
    st.sampled_from(
        [b"", b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x10"]
    ),
    st.booleans(),
)
def test_any_sound_is_read_or_refused(good, tmp_path_factory, which, place, over, in_header):
    name, content = sorted(good.items())[which]
    at = int(place * min(len(content), 100 if in_header else len(content)))
    path = tmp_path_factory.getbasetemp() / f"spoiled_{name}"
    path.write_bytes(content[:at] + over + (content[at + len(over) :] if over else b""))
    tracemalloc.start()
    try:
        audio, _ = read_audio(path)
        assert np.isfinite(audio).all()
    except InputError as error:
        check_refusal(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2**27


def claim(content: bytes, kind: str) -> bytes:
    """The content with a header that tells of 10^12 samples or so."""
    data = bytearray(content)
    many = 10**12
    if kind == "caf":
        at = content.index(b"data") + 4
        data[at : at + 8] = struct.pack(">q", many)
    elif kind == "w64":
        at = content.index(b"data\xf3\xac\xd3\x11") + 16
        data[at : at + 8] = struct.pack("<q", many)
    elif kind == "rf64":
        at = content.index(b"ds64") + 8
        data[at : at + 24] = struct.pack("<3Q", many, many, many)
    elif kind == "flac":
        # 36 bits of samples in the stream's description.
        at = content.index(b"fLaC") + 8 + 13
        data[at : at + 5] = bytes([data[at] | 15, 255, 255, 255, 255])
    return bytes(data)


@pytest.mark.parametrize("kind", ["caf", "w64", "rf64", "flac"])
def test_a_header_of_10_to_the_12_samples_makes_nothing_of_that_size(good, tmp_path, kind):
    (content,) = (held for name, held in good.items() if name.endswith(f".{kind}"))
    path = tmp_path / f"a.{kind}"
    path.write_bytes(claim(content, kind))
    tracemalloc.start()
    try:
        read_audio(path)
    except InputError as error:
        check_refusal(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2**24


def test_a_header_that_promises_more_than_a_file_can_hold_is_refused(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(4000), RATE_HZ)
    data = bytearray(path.read_bytes())
    # Half an hour at this rate, below every other limit.
    data[21:26] = bytes([data[21] & 0xF0, *struct.pack(">I", 1800 * RATE_HZ)])
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"promises 28800000 frames of 1 channel\(s\), more than"):
        read_audio(path)


@pytest.mark.parametrize(
    ("rate_hz", "channels", "message"),
    [
        (0, 1, "(sample rate 0 Hz|cannot be decoded)"),
        (4_000_000, 1, "sample rate 4000000 Hz; it must lie within"),
        (RATE_HZ, 0, "cannot be decoded|holds no samples"),
    ],
)
def test_odd_headers_of_wav_are_refused(tmp_path, rate_hz, channels, message):
    body = struct.pack("<HHIIHH", 1, channels, rate_hz, rate_hz * 2, 2 * channels, 16)
    chunks = b"fmt " + struct.pack("<I", 16) + body + b"data" + struct.pack("<I", 200) + b"\1" * 200
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    with pytest.raises(InputError, match=message):
        read_audio(path)


def test_one_sample_and_32_channels_are_sound(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1), RATE_HZ, subtype="FLOAT")
    assert read_audio(tmp_path / "a.wav")[0].shape == (1, 1)
    soundfile.write(tmp_path / "b.wav", tone(10, 32), RATE_HZ, subtype="FLOAT")
    assert read_audio(tmp_path / "b.wav")[0].shape == (32, 10)


def responses(folder: Path, name: str) -> Path:
    (folder / "rirs.csv").write_text(f"{RIRS}\n{name},,,,hall\n")
    return folder / "rirs.csv"


def sofa(folder: Path, name: str = "a.sofa", **changes):
    h5py = pytest.importorskip("h5py")
    file = h5py.File(folder / name, "w")
    held = {
        "Data.IR": 0.1 * np.random.default_rng(0).standard_normal((1, 2, 200)),
        "Data.SamplingRate": [float(RATE_HZ)],
        "SourcePosition": [[0.0, 0.0, 1.5]],
        **changes,
    }
    for key, value in held.items():
        if value is not None:
            file[key] = value
    return file


def refused(folder: Path, message: str) -> None:
    tracemalloc.start()
    with pytest.raises(InputError, match=message):
        load_measured_rirs(responses(folder, "a.sofa"), RATE_HZ)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


def test_a_sofa_file_of_10_to_the_12_numbers_makes_nothing_of_that_size(tmp_path):
    with sofa(tmp_path, **{"Data.IR": None}) as file:
        file.create_dataset("Data.IR", (1, 2, 5 * 10**11), "f8", chunks=(1, 2, 1024))
    refused(tmp_path, r"Data\.IR of shape \(1, 2, 500000000000\) is more than its 0 bytes can hold")


def test_a_sofa_file_reads_no_other_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "sub").mkdir()
    with sofa(tmp_path, "secret.sofa"):
        pass
    with sofa(tmp_path / "sub", **{"Data.IR": None}) as file:
        file["Data.IR"] = h5py.ExternalLink("../secret.sofa", "Data.IR")
    refused(tmp_path / "sub", r"a\.sofa' cannot be read \(Data\.IR lies in another file\)")
    (tmp_path / "raw").write_bytes(bytes(3200))
    with sofa(tmp_path / "sub", **{"Data.IR": None}) as file:
        raw = [(str(tmp_path / "raw"), 0, 3200)]
        file.create_dataset("Data.IR", (1, 2, 200), "f8", external=raw)
    refused(tmp_path / "sub", r"Data\.IR lies in another file")
    with sofa(tmp_path / "sub", **{"Data.IR": None}) as file:
        layout = h5py.VirtualLayout((1, 2, 200), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.sofa"), "Data.IR", (1, 2, 200))
        file.create_virtual_dataset("Data.IR", layout)
    refused(tmp_path / "sub", r"Data\.IR lies in another file")


@pytest.mark.parametrize("name", ["Data.IR", "Data.SamplingRate", "SourcePosition"])
def test_words_in_place_of_numbers_are_refused(tmp_path, name):
    with sofa(tmp_path, **{name: np.array([b"x", b"y"])}):
        pass
    refused(tmp_path, r"a\.sofa' cannot be read")


def test_a_response_of_hours_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(400, 2), RATE_HZ)
    data = bytearray(path.read_bytes())
    data[21:26] = bytes([data[21] & 0xF0, *struct.pack(">I", 3600 * RATE_HZ)])
    path.write_bytes(data)
    (tmp_path / "rirs.csv").write_text(f"{RIRS}\na.flac,0,0,1,hall\n")
    with pytest.raises(InputError, match="57600000 samples, above 60 s; cut the response where"):
        load_measured_rirs(tmp_path / "rirs.csv", RATE_HZ)


def test_a_video_that_is_a_list_of_other_files_opens_none(tmp_path):
    pytest.importorskip("av")
    pictures = np.random.default_rng(0).integers(0, 256, (8, 16, 32, 3)).astype(np.uint8)
    write_video(tmp_path / "secret.mp4", pictures, 10)
    lists = {
        "concat.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
        "list.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=rf"{name}: cannot be decoded as video"):
            frames_at(tmp_path / name, [0.05], (8, 8))
    assert frames_at(tmp_path / "secret.mp4", [0.05], (8, 8)).any()


def test_a_name_is_no_address(tmp_path, monkeypatch):
    pytest.importorskip("av")
    pictures = np.random.default_rng(0).integers(0, 256, (4, 16, 32, 3)).astype(np.uint8)
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", pictures, 10)
    (tmp_path / "a.mp4").rename(tmp_path / "concat:a|b.mp4")
    assert frames_at("concat:a|b.mp4", [0.05], (8, 8)).any()
