"""Measured responses from a CSV: wav, SOFA, resampling, and what is refused."""

import csv
import sys

import numpy as np
import pytest
import soundfile

from spatial_clap_jax.acoustics.measured_rirs import load_measured_rirs
from spatial_clap_jax.acoustics.rirs import measure_t60_s
from spatial_clap_jax.errors import InputError

RATE_HZ = 16_000
COLUMNS = ["filename", "azimuth_deg", "elevation_deg", "distance_m", "room"]


def _csv(folder, *rows, columns=COLUMNS):
    with (folder / "measured.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return folder / "measured.csv"


def _wav(path, rir, rate_hz=RATE_HZ):
    soundfile.write(path, np.asarray(rir, np.float32).T, rate_hz, subtype="FLOAT")


def _decay(samples=800, seed=0):
    noise = np.random.default_rng(seed).standard_normal((2, samples))
    return noise * 10 ** (-3 * np.arange(samples) / samples)


def _sofa(path, rirs, positions, **changes):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as sofa:
        sofa["Data.IR"] = rirs
        sofa["Data.SamplingRate"] = changes.get("rates_hz", [float(RATE_HZ)])
        sofa["Data.Delay"] = changes.get("delays", np.zeros((1, 2)))
        sofa["SourcePosition"] = positions
        sofa["SourcePosition"].attrs["Type"] = np.bytes_(changes.get("kind", "spherical"))
        sofa["ReceiverPosition"] = np.array(
            changes.get("receivers", [[0, 0.08, 0], [0, -0.08, 0]])
        )[..., None]


def test_rooms_keep_their_rows_levels_and_channels(tmp_path):
    (tmp_path / "hall").mkdir()
    long, short = _decay(800), 5 * _decay(500, seed=1)
    _wav(tmp_path / "hall" / "a.wav", long)
    _wav(tmp_path / "b.wav", short)
    path = _csv(
        tmp_path,
        ["hall/a.wav", "30", "0", "2.5", "hall"],
        ["b.wav", "-90", "5", "1", "cell"],
        ["b.wav", "90", "0", "1", "hall"],
    )
    hall, cell = load_measured_rirs(path, RATE_HZ)
    assert (hall.name, cell.name) == ("hall", "cell")
    assert hall.sample_rate_hz == RATE_HZ
    assert hall.rirs.shape == (2, 2, 800)
    np.testing.assert_allclose(hall.rirs[0], long, rtol=1e-6)
    np.testing.assert_allclose(hall.rirs[1, :, :500], short, rtol=1e-6)
    assert not hall.rirs[1, :, 500:].any()
    np.testing.assert_array_equal(hall.azimuth_deg, [30, 90])
    np.testing.assert_array_equal(cell.elevation_deg, [5])
    np.testing.assert_array_equal(hall.distance_m, [2.5, 1])
    t60_s = [measure_t60_s(rir, RATE_HZ) for rir in cell.rirs[0]]
    assert cell.t60_s == pytest.approx(np.mean(t60_s))


@pytest.mark.parametrize("rate_hz", [48_000, 44_100, 8_000])
def test_resampling_keeps_delay_level_and_the_gain_of_the_filter(tmp_path, rate_hz):
    frequency_hz = np.fft.rfftfreq(rate_hz, 1 / rate_hz)
    smooth = np.exp(-((frequency_hz / 1500) ** 2)) * np.exp(-2j * np.pi * frequency_hz * 0.01)
    itd = np.exp(-2j * np.pi * frequency_hz * 3.3e-4)
    rir = np.fft.irfft(np.stack([smooth, 0.5 * smooth * itd]), rate_hz)
    _wav(tmp_path / "a.wav", rir, rate_hz)
    path = _csv(tmp_path, ["a.wav", "0", "0", "1", "room"])
    (room,) = load_measured_rirs(path, RATE_HZ)
    spectrum = np.fft.rfft(room.rirs[0], RATE_HZ)[:, :2000]
    hertz = np.arange(2000)
    np.testing.assert_allclose(np.abs(spectrum[0]), np.exp(-((hertz / 1500) ** 2)), atol=2e-3)
    expected = 0.5 * np.exp(-2j * np.pi * hertz * 3.3e-4)
    np.testing.assert_allclose(spectrum[1] / spectrum[0], expected, atol=3e-3)


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("azimuth_deg", "91", r"azimuth_deg '91' must be a number in \[-90, 90\] \(\+90 is left\)"),
        ("azimuth_deg", "", "azimuth_deg '' must be a number"),
        ("azimuth_deg", "nan", "azimuth_deg 'nan' must be a number"),
        ("elevation_deg", "up", r"elevation_deg 'up' must be a number in \[-90, 90\]"),
        ("distance_m", "0", r"distance_m '0' must be a number in \(0, 1000\]"),
        ("room", " ", "room is empty"),
        ("filename", "", "filename is empty"),
        ("filename", "no.wav", "filename 'no.wav' does not exist"),
        ("filename", "../out.wav", "filename '../out.wav' leaves the csv's folder"),
        ("filename", "link.wav", "filename 'link.wav' leaves the csv's folder"),
        ("filename", "a\0.wav", "leaves the csv's folder"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(tmp_path, column, value, text):
    folder = tmp_path / "set"
    folder.mkdir()
    _wav(folder / "a.wav", _decay())
    _wav(tmp_path / "out.wav", _decay())
    (folder / "link.wav").symlink_to(tmp_path / "out.wav")
    good = dict(zip(COLUMNS, ["a.wav", "10", "0", "1", "room"], strict=True))
    path = _csv(folder, good.values(), {**good, column: value}.values())
    with pytest.raises(InputError, match=rf"^measured.csv: row 3: .*{text}"):
        load_measured_rirs(path, RATE_HZ)


def test_an_absolute_path_is_refused_even_inside_the_folder(tmp_path):
    _wav(tmp_path / "a.wav", _decay())
    path = _csv(tmp_path, [tmp_path / "a.wav", "0", "0", "1", "room"])
    with pytest.raises(InputError, match=r"row 2: filename '.*a.wav' leaves the csv's folder"):
        load_measured_rirs(path, RATE_HZ)


@pytest.mark.parametrize(
    ("rir", "text"),
    [
        (_decay()[:1], "has 1 channels; a stereo response has 2"),
        (np.concatenate([_decay(), _decay()]), "has 4 channels"),
        (np.zeros((2, 0)), "has zero length"),
        (np.zeros((2, 9)), "is silent"),
        (np.where(np.arange(800) == 700, np.nan, _decay()), "holds NaN or infinite samples"),
    ],
)
def test_an_unusable_response_is_refused(tmp_path, rir, text):
    _wav(tmp_path / "bad.wav", rir)
    path = _csv(tmp_path, ["bad.wav", "0", "0", "1", "room"])
    with pytest.raises(InputError, match=f"^measured.csv: row 2: 'bad.wav' {text}"):
        load_measured_rirs(path, RATE_HZ)


@pytest.mark.parametrize(
    ("name", "subtype", "text"),
    [("cut.wav", "FLOAT", "is truncated"), ("cut.flac", "PCM_16", "(is truncated|cannot be read)")],
)
def test_a_truncated_file_is_refused(tmp_path, name, subtype, text):
    file = tmp_path / name
    soundfile.write(file, 0.1 * _decay(20_000).T, RATE_HZ, subtype=subtype)
    file.write_bytes(file.read_bytes()[:-20_000])
    path = _csv(tmp_path, [name, "0", "0", "1", "room"])
    with pytest.raises(InputError, match=f"row 2: '{name}' {text}"):
        load_measured_rirs(path, RATE_HZ)
    file.write_bytes(b"")
    with pytest.raises(InputError, match=f"row 2: '{name}' cannot be read"):
        load_measured_rirs(path, RATE_HZ)


def test_a_csv_without_its_columns_rows_or_text_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"measured.csv: column 'room' is missing"):
        load_measured_rirs(_csv(tmp_path, columns=COLUMNS[:4]), RATE_HZ)
    with pytest.raises(InputError, match=r"measured.csv: has no rows"):
        load_measured_rirs(_csv(tmp_path), RATE_HZ)
    with pytest.raises(InputError, match=r"none.csv: cannot be read"):
        load_measured_rirs(tmp_path / "none.csv", RATE_HZ)
    (tmp_path / "measured.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"measured.csv: cannot be read"):
        load_measured_rirs(tmp_path / "measured.csv", RATE_HZ)


def test_a_sofa_row_takes_all_frontal_measurements_or_the_one_it_names(tmp_path):
    rirs = np.stack([_decay(200, seed) for seed in range(4)])
    _sofa(tmp_path / "a.sofa", rirs, [[0, 0, 1.5], [270, 10, 1.5], [180, 0, 1.5], [30, 60, 1.5]])
    (room,) = load_measured_rirs(_csv(tmp_path, ["a.sofa", "", "", "", "lab"]), RATE_HZ)
    np.testing.assert_array_equal(room.azimuth_deg, [0, -90])
    np.testing.assert_array_equal(room.elevation_deg, [0, 10])
    np.testing.assert_array_equal(room.distance_m, [1.5, 1.5])
    np.testing.assert_allclose(room.rirs, rirs[:2], rtol=1e-6)
    (one,) = load_measured_rirs(_csv(tmp_path, ["a.sofa", "30", "60", "1.5", "lab"]), RATE_HZ)
    np.testing.assert_allclose(one.rirs, rirs[3:], rtol=1e-6)
    with pytest.raises(InputError, match=r"row 2: 'a.sofa' has no measurement within 0.5 degrees"):
        load_measured_rirs(_csv(tmp_path, ["a.sofa", "50", "0", "1.5", "lab"]), RATE_HZ)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kind": "cartesian"}, "SourcePosition is .*cartesian.*; it must be spherical"),
        ({"rates_hz": [8000.0, 16000.0]}, "Data.SamplingRate .* must be one rate"),
        ({"delays": [[0, 3]]}, "Data.Delay is not zero"),
        ({"receivers": [[0, -0.08, 0], [0, 0.08, 0]]}, "the left receiver must come first"),
        ({"positions": [[0, 0]]}, r"SourcePosition of shape \(1, 2\) must hold azimuth"),
        ({"positions": [[180, 0, 1]]}, "has no measurement with azimuth in"),
        ({"rirs": np.ones((1, 4, 9))}, r"Data.IR of shape \(1, 4, 9\)"),
        ({"rirs": np.full((1, 2, 9), np.nan)}, "holds NaN or infinite samples"),
    ],
)
def test_an_unusable_sofa_file_is_refused(tmp_path, changes, text):
    rirs = changes.pop("rirs", _decay(50)[None])
    _sofa(tmp_path / "a.sofa", rirs, changes.pop("positions", [[0, 0, 1]]), **changes)
    path = _csv(tmp_path, ["a.sofa", "", "", "", "lab"])
    with pytest.raises(InputError, match=f"^measured.csv: row 2: 'a.sofa':? {text}"):
        load_measured_rirs(path, RATE_HZ)


def test_a_file_that_is_no_sofa_file_is_refused(tmp_path):
    pytest.importorskip("h5py")
    (tmp_path / "a.sofa").write_bytes(b"nothing")
    path = _csv(tmp_path, ["a.sofa", "", "", "", "lab"])
    with pytest.raises(InputError, match=r"'a.sofa' cannot be read"):
        load_measured_rirs(path, RATE_HZ)


def test_sofa_without_h5py_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.sofa").write_bytes(b"")
    path = _csv(tmp_path, ["a.sofa", "", "", "", "lab"])
    with pytest.raises(InputError, match=r"needs h5py .* pip install 'spatial-clap-jax\[sofa\]'"):
        load_measured_rirs(path, RATE_HZ)
