import numpy as np
import pytest

from trifed.common.errors import MessageError
from trifed.similarity import Summary, summarise
from trifed.similarity.summary import most_bytes


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3], [45, 20, 15, 15])
    return summarise(rng.standard_normal((95, 4)) / 4, labels, max_components=2, seed=0).to_arrays()


def test_round_trip_is_exact(arrays):
    back = Summary.from_arrays(arrays, dim=4)
    again = back.to_arrays()
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    assert all(arrays[name].dtype == again[name].dtype for name in arrays)
    assert type(back.self_distance) is float
    again["means"][:] = 9.0
    assert not (arrays["means"] == 9.0).any()  # a copy: the sender's buffer may go away


def test_size_is_half_a_kilobyte_a_component():
    x = np.random.default_rng(0).standard_normal((77 * 20, 64)) / 64
    summary = summarise(x, np.repeat(np.arange(77), 20), seed=0)
    assert summary.nbytes == 77 * (2 * 64 * 4 + 16 + 16) + 8


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("means", lambda a: a.astype(np.float64)),
        ("means", lambda a: a[:, :3]),
        ("means", lambda a: a[0]),
        ("means", lambda a: np.where(a == a[0, 0], np.float32("nan"), a)),
        ("means", lambda a: a * np.float32("inf")),
        ("means", lambda a: a.tolist()),
        ("variances", lambda a: a - np.float32(1)),
        ("variances", lambda a: a[:1]),
        ("variances", lambda a: a * np.float32("nan")),
        ("counts", lambda a: a - 10**6),
        ("counts", lambda a: a + 1),
        ("counts", lambda a: a * 0),
        ("counts", lambda a: a + 2**62),
        ("counts", lambda a: a.astype(np.int32)),
        ("labels", lambda a: a + 50),
        ("labels", lambda a: a - 7),
        ("labels", lambda a: a[:-1]),
        ("class_labels", lambda a: a * 0),
        ("class_labels", lambda a: a - 1),
        ("class_counts", lambda a: a + 1),
        ("class_counts", lambda a: -a),
        ("class_counts", lambda a: a[:1]),
        ("self_distance", lambda a: -1 - a),
        ("self_distance", lambda a: a * np.nan),
        ("self_distance", lambda a: np.append(a, a)),
        ("self_distance", lambda a: a[0]),
    ],
)
def test_what_must_not_be_accepted(arrays, name, change):
    with pytest.raises(MessageError, match="summary"):
        Summary.from_arrays({**arrays, name: change(arrays[name])})


def test_names_and_dimension_are_checked(arrays):
    with pytest.raises(MessageError, match="expected"):
        Summary.from_arrays({**arrays, "extra": np.zeros(1)})
    with pytest.raises(MessageError, match="expected"):
        Summary.from_arrays({name: array for name, array in arrays.items() if name != "means"})
    with pytest.raises(MessageError, match="means"):
        Summary.from_arrays(arrays, dim=64)


def test_the_merged_component_has_to_add_up(arrays):
    assert arrays["labels"].tolist()[-1] == -1 and arrays["counts"][-1] == 30
    wrong = arrays["counts"].copy()
    wrong[-1] += 1
    with pytest.raises(MessageError, match="merged"):
        Summary.from_arrays({**arrays, "counts": wrong})


def many(classes, components, dim=4):
    """A summary of classes of so many components each."""
    labels = np.repeat(np.arange(classes), components)
    means = np.zeros((len(labels), dim), np.float32)
    counts, sizes = np.full(len(labels), 20), np.full(classes, 20 * components)
    return Summary(labels, counts, means, means + np.float32(0.1), 0.0, np.arange(classes), sizes).to_arrays()


@pytest.mark.parametrize(
    ("classes", "components", "accepted"),
    [
        (222, 3, True),
        (223, 3, False),
        (2000, 1, True),
        (2001, 1, False),
        (5, 4, False),
        (4000, 0, True),
        (4001, 0, False),
    ],
)
def test_the_number_of_components_is_limited(classes, components, accepted):
    arrays = many(classes, components)
    if accepted:
        assert len(Summary.from_arrays(arrays).class_labels) == classes
        assert sum(array.nbytes for array in arrays.values()) <= most_bytes(4)
    else:
        with pytest.raises(MessageError, match="components of each"):
            Summary.from_arrays(arrays)


@pytest.mark.parametrize(("name", "value"), [("means", 2e18), ("variances", 3e38), ("self_distance", 1e300)])
def test_numbers_of_an_absurd_size_are_refused(arrays, name, value):
    with pytest.raises(MessageError, match=name):
        Summary.from_arrays({**arrays, name: np.full_like(arrays[name], value)})


def test_a_summary_of_many_classes_is_made_so_that_it_is_accepted():
    labels = np.repeat(np.arange(250), 60)
    x = np.random.default_rng(0).standard_normal((len(labels), 2)) + 5 * (np.arange(len(labels)) % 3)[:, None]
    summary = summarise(x, labels, seed=0)
    assert np.bincount(summary.labels).max() == 2
    Summary.from_arrays(summary.to_arrays())


def test_counts_only_and_absent_classes_pass():
    bare = summarise(np.ones((5, 3)) / 3, np.arange(5), seed=0).to_arrays()
    assert Summary.from_arrays(bare, dim=3).means.shape == (0, 3)
    assert Summary.from_arrays({**bare, "class_counts": np.zeros(5, np.int64)}).class_counts.sum() == 0
