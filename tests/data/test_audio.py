"""Reading files: samples as written, and a clear refusal of each broken kind."""

import os

import numpy as np
import pytest
import soundfile

from spatial_clap_jax.data.audio import read_audio, resample
from spatial_clap_jax.errors import InputError

FORMATS = [
    ("a.wav", "PCM_16"),
    ("b.wav", "FLOAT"),
    ("c.rf64", "PCM_16"),
    ("d.aiff", "PCM_16"),
    ("e.flac", "PCM_16"),
    ("f.ogg", "VORBIS"),
    ("g.ogg", "OPUS"),
    ("h.mp3", "MPEG_LAYER_III"),
]


def noise(frames=24_000, channels=2):
    return 0.1 * np.random.default_rng(0).standard_normal((frames, channels)).astype("f4")


@pytest.fixture(params=FORMATS, ids=lambda given: "-".join(given))
def written(request, tmp_path):
    name, subtype = request.param
    kind = {"rf64": "RF64", "aiff": "AIFF"}.get(name.split(".")[1])
    soundfile.write(tmp_path / name, noise(), 16_000, subtype=subtype, format=kind)
    return tmp_path / name


def test_all_channels_come_back_at_the_files_rate(written):
    audio, rate_hz = read_audio(written)
    assert (audio.shape, audio.dtype, rate_hz) == ((2, 24_000), np.float32, 16_000)
    if written.suffix not in (".ogg", ".mp3"):
        np.testing.assert_allclose(audio, noise().T, atol=1 / 32768)


@pytest.mark.parametrize("kept", [0.999, 0.7, 0.3])
def test_a_file_that_was_cut_short_is_refused(written, kept):
    content = written.read_bytes()
    if written.suffix == ".mp3" and kept > 0.99:
        pytest.skip("less than one MP3 frame is lost")
    written.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match=r"cut short|cannot be decoded") as refusal:
        read_audio(written)
    assert str(written) in str(refusal.value)
    assert "give a whole copy" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_ogg_file_cut_between_its_pages_is_refused(tmp_path):
    path = tmp_path / "a.ogg"
    soundfile.write(path, noise(), 16_000, subtype="VORBIS")
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"OggS")])
    with pytest.raises(InputError, match="cut short: the Ogg stream lacks its last page"):
        read_audio(path)


def test_a_wav_file_from_a_pipe_does_not_tell_its_length(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(100), 16_000, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    start = content.find(b"data") + 4
    content[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert read_audio(path)[0].shape == (2, 100)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_must_be_finite(tmp_path, value):
    samples = noise(100)
    samples[3, 1] = value
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"a\.wav: 1 of 200 samples are NaN or infinite; every"):
        read_audio(tmp_path / "a.wav")


def test_missing_empty_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no\.wav: no such audio file \(No such .*\); check"):
        read_audio(tmp_path / "no.wav")
    with pytest.raises(InputError, match="no such audio file"):
        read_audio(tmp_path)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(InputError, match=r"empty\.wav: the audio file is empty \(0 bytes\)"):
        read_audio(tmp_path / "empty.wav")
    for name in ("text.wav", "text.raw", "text.ogg"):
        (tmp_path / name).write_text("no audio at all " * 9)
        with pytest.raises(InputError, match=f"{name}: cannot be decoded as audio .*wav, flac"):
            read_audio(tmp_path / name)
    (tmp_path / "page.ogg").write_bytes(b"OggS, and no page follows")
    with pytest.raises(InputError, match="lacks its last page"):
        read_audio(tmp_path / "page.ogg")
    (tmp_path / "stub.wav").write_bytes(b"RIFF\x00\x00\x00\x00WAVE")
    with pytest.raises(InputError, match=r"stub\.wav"):
        read_audio(tmp_path / "stub.wav")


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(100), 16_000)
    (tmp_path / "a.wav").chmod(0)
    with pytest.raises(InputError, match=r"a\.wav: cannot be read \(Permission denied\)"):
        read_audio(tmp_path / "a.wav")


def test_a_file_without_samples_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(0), 16_000)
    with pytest.raises(InputError, match=r"a\.wav: holds no samples"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("rate_hz", [100, 500_000])
def test_a_rate_that_no_recording_has_is_refused(tmp_path, rate_hz):
    soundfile.write(tmp_path / "a.wav", noise(100), rate_hz)
    with pytest.raises(InputError, match=rf"a\.wav: sample rate {rate_hz} Hz; it must lie within"):
        read_audio(tmp_path / "a.wav")


def test_an_absurd_length_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(5000, 1), 8_000, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    # STREAMINFO: the last 36 of the 64 bits at byte 18 count the samples; 0 stands for unknown.
    content[21] = (content[21] & 0xF0) | 0x0F
    content[22:26] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"promises \d+ frames, above 24 hours"):
        read_audio(path)


def test_resampling_keeps_tones_channels_and_their_relation():
    t = np.arange(44_100) / 44_100
    tone = np.sin(2 * np.pi * 440 * t).astype("f4")
    stereo = np.stack([tone, -0.5 * tone])
    resampled = resample(stereo, 44_100, 16_000)
    wanted = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert resampled.shape == (2, 16_000)
    np.testing.assert_allclose(resampled[0, 500:-500], wanted[500:-500], atol=1e-3)
    np.testing.assert_allclose(resampled[1], -0.5 * resampled[0], atol=1e-6)
    np.testing.assert_array_equal(resampled[0], resample(tone, 44_100, 16_000))
    assert resample(stereo, 16_000, 16_000) is stereo


def test_resampling_leaves_out_what_the_lower_rate_cannot_hold():
    tone = np.sin(2 * np.pi * 10_000 * np.arange(44_100) / 44_100).astype("f4")
    assert np.abs(resample(tone, 44_100, 16_000)[500:-500]).max() < 1e-3
