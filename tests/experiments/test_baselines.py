"""The cheap controls, on data where the right answer is known."""

from __future__ import annotations

import numpy as np

from trifed.experiments.baselines import ClientFeatures, class_means, linear_probe, run_baselines
from trifed.similarity import project

CENTRES = 4.0 * np.eye(3, 10)
NOTHING = (np.zeros((0, 10), np.float32), np.zeros(0, np.int64))


def points(seed: int, count: int, labels=(0, 1, 2), shift: int = 0):
    """Features (count, 10) near the centre of their label; `shift` moves each label to another centre."""
    rng = np.random.default_rng(seed)
    y = np.array([labels[i % len(labels)] for i in range(count)], np.int64)
    return (CENTRES[(y + shift) % 3] + 0.2 * rng.standard_normal((count, 10))).astype(np.float32), y


def client(seed: int, shift: int = 0, labels=(0, 1, 2)) -> ClientFeatures:
    return ClientFeatures(*(points(seed + i, n, labels, shift) for i, n in enumerate((30, 9, 12))))


def test_the_probe_is_perfect_where_classes_are_separable():
    train, valid, (features, labels) = points(0, 30), points(1, 9), points(2, 30)
    predicted = linear_probe(train, valid, features)
    assert predicted.dtype == np.int64 and np.array_equal(predicted, labels)
    assert np.array_equal(linear_probe(train, NOTHING, features), labels)  # no validation data: still one answer


def test_the_probe_answers_by_the_clients_labels_whatever_numbers_they_have():
    (x, y), (features, labels) = points(0, 30, (2, 7), 0), points(2, 10, (2, 7), 0)
    assert set(linear_probe((x, y), NOTHING, features)) == {2, 7}
    assert np.array_equal(linear_probe((x, y), NOTHING, features), labels)


def test_one_class_gives_the_majority():
    features, _ = points(0, 6)
    assert linear_probe((features, np.full(6, 4)), NOTHING, features[:3]).tolist() == [4, 4, 4]


def test_no_training_data_and_no_test_data_are_answers_too():
    features, labels = points(0, 30)
    assert linear_probe(NOTHING, NOTHING, features[:2]).tolist() == [0, 0]
    assert linear_probe((features, labels), NOTHING, NOTHING[0]).shape == (0,)


def test_validation_data_choose_the_strength():
    # Two labels in noise: on validation data equal to the training data the weakest regularisation fits best.
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 10)), rng.integers(0, 2, 40)
    fitted = (linear_probe((x, y), (x, y), x) == y).mean()
    against = (linear_probe((x, y), (x, 1 - y), x) == y).mean()
    assert fitted > against


def test_class_means_are_the_nearest_mean_by_hand():
    clients = [client(0), client(10), client(20)]
    predicted = class_means(clients, 7)
    x = project(np.concatenate([c.train[0] for c in clients]), dim=64, seed=7)
    y = np.concatenate([c.train[1] for c in clients])
    means = {
        label: np.mean([row for row, own in zip(x, y, strict=True) if own == label], 0) for label in (0, 1, 2)
    }
    for one, labels in zip(clients, predicted, strict=True):
        for row, label in zip(project(one.test[0], dim=64, seed=7), labels, strict=True):
            assert label == min(means, key=lambda k: ((row - means[k]) ** 2).sum())
        assert np.array_equal(labels, one.test[1])


def test_means_of_all_clients_fail_where_clients_name_things_differently():
    # Clients 1 and 2 swap what labels 0, 1 and 2 mean: their own probe knows, the common means cannot.
    clients = [client(0, 0), client(10, 1), client(20, 2)]
    found = run_baselines(clients, 0)
    assert list(found) == ["probe-alone", "probe-all", "probe-all-prior", "class-means", "majority"]
    for place, one in enumerate(clients):
        assert np.array_equal(found["probe-alone"][place], one.test[1])
    right = np.mean([(found["class-means"][i] == c.test[1]).mean() for i, c in enumerate(clients)])
    assert right < 0.7


def test_the_common_probe_answers_each_client_in_its_place():
    clients = [client(0), ClientFeatures(NOTHING, NOTHING, NOTHING), client(20, labels=(1, 2))]
    found = run_baselines(clients, 0)
    for predicted in found.values():
        assert [len(labels) for labels in predicted] == [12, 0, 12]
    for place in (0, 2):
        assert np.array_equal(found["probe-all"][place], clients[place].test[1])


def test_the_own_prior_decides_where_features_do_not():
    """Noise for features: the common probe can only guess, each client's label shares are all there is to know."""
    rng = np.random.default_rng(3)

    def noise(count, label):
        return rng.standard_normal((count, 10)), np.full(count, label)

    clients = [ClientFeatures(*(noise(n, label) for n in (40, 10, 20))) for label in (0, 1)]
    found = run_baselines(clients, 0)
    for place in (0, 1):
        assert (found["probe-all-prior"][place] == place).all()
    assert np.mean([(found["probe-all"][place] == place).mean() for place in (0, 1)]) < 0.8


def test_with_equal_label_shares_the_own_prior_changes_nothing():
    clients = [client(0), client(10), client(20)]
    found = run_baselines(clients, 0)
    for plain, own in zip(found["probe-all"], found["probe-all-prior"], strict=True):
        assert np.array_equal(plain, own)


def test_the_majority_is_each_clients_own():
    mostly = ClientFeatures(points(0, 10, (1, 2, 1, 1)), NOTHING, points(1, 5))
    found = run_baselines([mostly, client(10, labels=(2,))], 0)["majority"]
    assert found[0].tolist() == [1] * 5 and found[1].tolist() == [2] * 12


def test_many_labels_with_few_examples_each_are_no_reason_to_warn():
    features = np.eye(30)
    labels = np.arange(30) // 2 * 2  # 15 labels twice; then 20 labels over 30 rows, more than half as many
    labels[:10] = np.arange(10)
    predicted = linear_probe((features, labels), (features, labels), features)
    np.testing.assert_array_equal(predicted, labels)
