"""Videos by their time stamps: rates, changing rates, sizes, and files that cannot be used."""

import sys
from fractions import Fraction

import numpy as np
import pytest

from spatial_clap_jax.data.video import check_length, each_frame_at, frames_at, write_video
from spatial_clap_jax.errors import InputError

av = pytest.importorskip("av")

NTSC = Fraction(30000, 1001)


def numbered(count, height=32, width=64):
    """Pictures that tell their number: eight columns, white for a one, the highest bit first."""
    bits = np.arange(count)[:, None] >> np.arange(7, -1, -1) & 1
    columns = np.repeat(bits, width // 8, axis=1).astype(np.uint8) * 255
    return np.broadcast_to(columns[:, None, :, None], (count, height, width, 3)).copy()


def numbers_of(pictures):
    """What `numbered` wrote."""
    _, _, width, _ = pictures.shape
    middles = pictures.mean(axis=(1, 3))[:, width // 16 :: width // 8] > 127
    return (middles << np.arange(7, -1, -1)).sum(axis=1).tolist()


def write_stamped(path, stamps, time_base=Fraction(1, 100)):
    """A video whose pictures have the time stamps given."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.codec_context.time_base = time_base
        stream.codec_context.gop_size = 1
        for stamp, picture in zip(stamps, numbered(len(stamps)), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = stamp, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("rate_hz", [10, 30, NTSC, 25])
def test_the_picture_on_show_is_found_at_every_rate(tmp_path, rate_hz):
    count = round(5 * rate_hz)
    write_video(tmp_path / "clip.mp4", numbered(count), rate_hz)
    times_s = [0.1 * i + 0.05 for i in range(50)]
    found = numbers_of(frames_at(tmp_path / "clip.mp4", times_s, (32, 64), at_least_s=5.0))
    # Middles of pictures are compared, so that no time falls on an edge by rounding.
    expected = [int(time_s * float(rate_hz) + 1e-6) for time_s in times_s]
    assert found == expected


def test_ntsc_is_not_thirty(tmp_path):
    # After 40 s the two rates are more than a picture apart.
    for name, rate_hz in (("30", 30), ("29.97", NTSC)):
        write_video(tmp_path / name, numbered(250, 16, 64), rate_hz / 5)
    at_s = [40.999]
    assert numbers_of(frames_at(tmp_path / "30", at_s, (16, 64))) == [245]
    assert numbers_of(frames_at(tmp_path / "29.97", at_s, (16, 64))) == [245]
    assert numbers_of(frames_at(tmp_path / "30", [41.01], (16, 64))) == [246]
    assert numbers_of(frames_at(tmp_path / "29.97", [41.01], (16, 64))) == [245]


def test_a_changing_rate_is_read_by_time_stamps(tmp_path):
    # Pictures at 0, 0.1, 0.2, then every half second, the first one not at zero.
    stamps = [20, 30, 40, 90, 140, 190]
    write_stamped(tmp_path / "clip.mp4", stamps)
    times_s = [0.0, 0.05, 0.15, 0.25, 0.6, 0.71, 1.0, 1.3, 1.75]
    found = numbers_of(frames_at(tmp_path / "clip.mp4", times_s, (32, 64)))
    assert found == [0, 0, 1, 2, 2, 3, 3, 4, 5]


def test_pictures_are_resized_and_rgb(tmp_path):
    pictures = np.zeros((4, 32, 64, 3), np.uint8)
    pictures[:, :, :32] = 200, 30, 40
    pictures[:, :, 32:] = 20, 60, 210
    write_video(tmp_path / "clip.mp4", pictures, 10)
    small = frames_at(tmp_path / "clip.mp4", [0.1], (8, 16))
    assert small.shape == (1, 8, 16, 3)
    assert small.dtype == np.uint8
    np.testing.assert_allclose(small[0, 4, 3], [200, 30, 40], atol=12)
    np.testing.assert_allclose(small[0, 4, 12], [20, 60, 210], atol=12)


def test_without_a_size_pictures_are_as_they_were_decoded(tmp_path):
    rng = np.random.default_rng(0)
    write_video(tmp_path / "clip.mp4", rng.integers(0, 256, (3, 36, 64, 3)).astype(np.uint8), 10)
    (found,) = each_frame_at(tmp_path / "clip.mp4", [0.15], None)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        _, second, _ = container.decode(video=0)
        np.testing.assert_array_equal(found, second.to_image())


def test_a_video_shorter_than_its_audio_is_refused(tmp_path):
    write_video(tmp_path / "clip.mp4", numbered(49), 10)
    # A step of the labels less is let pass: the last picture stays on show.
    pictures = frames_at(tmp_path / "clip.mp4", [4.95], (32, 64), at_least_s=5.0)
    assert numbers_of(pictures) == [48]
    write_video(tmp_path / "clip.mp4", numbered(46), 10)
    with pytest.raises(InputError, match=r"clip\.mp4: the video lasts 4\.60 s, shorter than the 5"):
        frames_at(tmp_path / "clip.mp4", [4.95], (32, 64), at_least_s=5.0)


def test_lengths_are_checked_without_a_picture_decoded(tmp_path, monkeypatch):
    for count, rate_hz in ((49, 10), (150, 30), (1, Fraction(1, 5))):
        write_video(tmp_path / "clip.mp4", numbered(count), rate_hz)
        check_length(tmp_path / "clip.mp4", 5.0)
    write_video(tmp_path / "clip.mp4", numbered(46), 10)
    message = r"clip\.mp4: the video lasts 4\.60 s, shorter than the 5\.00 s of its audio; give a"
    with pytest.raises(InputError, match=message):
        check_length(tmp_path / "clip.mp4", 5.0)
    # The file says of itself that it ends with its last stamp; that picture lasts as the others.
    write_stamped(tmp_path / "clip.mp4", [0, 100, 200, 300, 400])
    check_length(tmp_path / "clip.mp4", 5.0)
    # Matroska tells no length of its pictures.
    write_stamped(tmp_path / "clip.mkv", [0, 100, 200, 300])
    check_length(tmp_path / "clip.mkv", 4.0)
    with pytest.raises(InputError, match=r"lasts 4\.00 s"):
        check_length(tmp_path / "clip.mkv", 5.0)
    with pytest.raises(InputError, match="no such video file"):
        check_length(tmp_path / "none.mp4", 5.0)


class StampedStream:
    """What PyAV gives of a file, with other time stamps."""

    def __init__(self, stream, stamps):
        self.stream, self.stamps = stream, stamps
        self.container = self

    def decode(self, _):
        frames = self.stream.container.decode(self.stream)
        for frame, stamp in zip(frames, self.stamps, strict=False):
            frame.pts = stamp
            yield frame


@pytest.mark.parametrize(
    ("stamps", "message"),
    [
        ([0, None, 2], "picture 1 has no time stamp; write the video again"),
        ([0, 5, 5], "time stamp 5 of picture 2 does not ascend from 5"),
        ([0, 5, 3], "time stamp 3 of picture 2 does not ascend from 5"),
    ],
)
def test_bad_time_stamps_are_refused(tmp_path, monkeypatch, stamps, message):
    from spatial_clap_jax.data import video

    write_video(tmp_path / "clip.mp4", numbered(3), 10)
    timed = video._timed
    monkeypatch.setattr(
        video, "_timed", lambda path, stream: timed(path, StampedStream(stream, stamps))
    )
    with pytest.raises(InputError, match=message):
        frames_at(tmp_path / "clip.mp4", [0.0], (32, 64))


def test_files_that_are_no_video_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no such video file \(No such .*\); check the"):
        frames_at(tmp_path / "none.mp4", [0.0], (32, 64))
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(InputError, match=r"text\.mp4: cannot be decoded as video"):
        frames_at(tmp_path / "text.mp4", [0.0], (32, 64))
    with pytest.raises(InputError, match="pictures of 63 x 32; width and height must be even"):
        write_video(tmp_path / "odd.mp4", numbered(2)[:, :, :63], 10)
    with pytest.raises(InputError, match="must ascend"):
        frames_at(tmp_path / "text.mp4", [1.0, 0.0], (32, 64))


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'spatial-clap-jax\[video\]'"):
        frames_at(tmp_path / "clip.mp4", [0.0], (32, 64))
