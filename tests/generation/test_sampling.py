import keras
import numpy as np
import pytest
from keras import ops

from keras_gpt.backend import compile_function
from keras_gpt.generation.sampling import (
    choose,
    choose_by_ops,
    choose_in_numpy,
    chosen_log_probs,
    draw_uniforms,
    draw_uniforms_by_ops,
    penalize_repetition,
)

# compiled as in generation: sums may be done in another order than eagerly
compiled_choose = compile_function(lambda state, inputs: choose(**inputs), [])
ways = [compiled_choose]
if keras.backend.backend() == "torch":  # which on CPUs chooses in NumPy
    ways.append(compile_function(lambda state, inputs: choose_by_ops(**inputs), []))


def sample(
    logits,
    uniforms,
    *,
    temperature=1.0,
    top_k=1 << 30,
    top_p=1.0,
    min_p=0.0,
    way=compiled_choose,
):
    """Ids `(rows,)`; each control is one value or one a row."""
    rows = len(uniforms)

    def spread(values, dtype="float32"):
        return ops.convert_to_tensor(np.array(np.broadcast_to(values, rows), dtype))

    logits = np.broadcast_to(
        np.asarray(logits, "float32"), (rows, np.shape(logits)[-1])
    )
    ids = way(
        {},
        {
            "logits": ops.convert_to_tensor(np.array(logits)),
            "temperature": spread(temperature),
            "top_k": spread(top_k, "int32"),
            "top_p": spread(top_p),
            "min_p": spread(min_p),
            "uniforms": spread(uniforms),
        },
    )
    return ops.convert_to_numpy(ids)


def softmax(logits):
    weights = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def truncated(probabilities, top_k=1 << 30, top_p=1.0, min_p=0.0):
    """The ids that may be drawn, and how far from the edge `top_p` decided."""
    order = np.argsort(-probabilities)[:top_k]
    shares = probabilities[order] / probabilities[order].sum()
    kept, mass, margin = [], 0.0, 1.0
    for token, share in zip(order, shares, strict=True):
        margin = min(margin, abs(mass - top_p)) if kept else margin
        if kept and mass >= top_p:
            break
        kept.append(token)
        mass += share
    largest = probabilities.max()
    return sorted(t for t in kept if probabilities[t] >= min_p * largest), margin


N = 20_000
GRID = (np.arange(N) + 0.5) / N
LOGITS = np.random.default_rng(0).normal(scale=1.5, size=16)


@pytest.mark.every_backend
@pytest.mark.parametrize(
    "controls",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"temperature": 1.5, "top_k": 9, "top_p": 0.8, "min_p": 0.15},
    ],
    ids=str,
)
def test_sampled_frequencies_are_the_probabilities(controls):
    controls = dict(controls)
    probabilities = softmax(LOGITS / controls.get("temperature", 1.0))
    limits = {name: x for name, x in controls.items() if name != "temperature"}
    support, _ = truncated(probabilities, **limits)
    expected = np.zeros(16)
    expected[support] = probabilities[support] / probabilities[support].sum()
    assert len(support) == 16 or 1 < len(support) < 12
    counts = np.bincount(sample(LOGITS, GRID, **controls), minlength=16)
    # evenly spread uniforms: each edge of an interval may gain or lose one of them;
    # of those that are drawn again numbers are random
    first = probabilities >= limits.get("min_p", 0) * probabilities.max()
    drawn_again = N * (1 - probabilities[support].sum() / probabilities[first].sum())
    deviation = np.sqrt(abs(drawn_again) * expected * (1 - expected))
    assert np.all(np.abs(counts - N * expected) <= 2 + 4 * deviation)
    assert not counts[expected == 0].any()


@pytest.mark.every_backend
def test_top_p_keeps_no_more_than_have_its_probability():
    logits = np.log([0.5, 0.25, 0.125, 0.125])
    for top_p, kept in ((0.4999, 1), (0.5001, 2), (0.7499, 2), (0.7501, 4)):
        ids = sample(logits, GRID[::100], top_p=top_p)
        assert set(ids.tolist()) == set(range(kept))


@pytest.mark.every_backend
def test_what_is_as_likely_as_the_last_kept_is_kept():
    logits = np.log([0.3, 0.1, 0.3, 0.3])
    ids = sample(logits, GRID[::100], top_k=1)
    assert set(ids.tolist()) == {0, 2, 3}


@pytest.mark.every_backend
def test_no_uniform_draws_a_token_outside_the_support():
    # At the edges of the intervals float32 sums decide; a parallel sum need not even
    # be monotonic
    random = np.random.default_rng(0)
    logits = random.normal(size=(8, 1000)).astype("float32")
    rows, uniforms, supports = [], [], []
    for row in range(8):
        probabilities = softmax(logits[row].astype("float64"))
        support, _ = truncated(probabilities, top_k=40)
        supports.append(support)
        for edge in np.cumsum(probabilities)[support[:-1]]:
            near = np.round(edge * 2**24) + np.arange(-8, 9)
            rows.extend([row] * len(near))
            uniforms.extend(near / 2**24)
    ids = sample(logits[rows], np.array(uniforms), top_k=40)
    outside = sum(
        token not in supports[row] for row, token in zip(rows, ids, strict=True)
    )
    assert outside == 0


@pytest.mark.every_backend
@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-23])
def test_the_extreme_uniforms_draw_the_first_and_last_of_the_support(uniform):
    random = np.random.default_rng(0)
    logits = random.normal(size=(50, 200))
    ids = sample(logits, np.full(50, uniform), min_p=0.3)
    for row in range(50):
        support, _ = truncated(softmax(logits[row]), min_p=0.3)
        assert ids[row] == (support[0] if uniform == 0 else support[-1])


@pytest.mark.every_backend
def test_temperature_0_is_greedy_beside_rows_that_sample():
    random = np.random.default_rng(0)
    logits = random.normal(size=(60, 16))
    temperature = np.tile([0.0, 1.0, 0.0], 20)
    uniforms = random.random(60)
    ids = sample(logits, uniforms, temperature=temperature)
    greedy = logits.argmax(-1)
    np.testing.assert_array_equal(ids[temperature == 0], greedy[temperature == 0])
    cumulative = np.cumsum(softmax(logits), axis=-1)
    drawn = np.sum(cumulative <= uniforms[:, None], axis=-1)
    np.testing.assert_array_equal(ids[temperature == 1], drawn[temperature == 1])
    assert np.any(drawn != greedy)
    np.testing.assert_array_equal(sample(logits, uniforms, temperature=0.0), greedy)


@pytest.mark.every_backend
@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-38, 1e-44])
def test_a_tiny_temperature_is_greedy(temperature):
    # logits divided by it overflow
    logits = 30 + 10 * np.random.default_rng(0).normal(size=(20, 16))
    uniforms = np.random.default_rng(1).random(20)
    ids = sample(logits, uniforms, temperature=temperature)
    np.testing.assert_array_equal(ids, logits.argmax(-1))


@pytest.mark.every_backend
def test_a_row_draws_the_same_whatever_its_neighbours_do():
    random = np.random.default_rng(0)
    logits = random.normal(size=(40, 16))
    uniforms = random.random(40)
    plain = sample(logits, uniforms)
    is_even = np.arange(40) % 2 == 0
    mixed = sample(
        logits,
        uniforms,
        temperature=np.where(is_even, 1, 0),
        top_k=np.where(is_even, 1 << 30, 2),
        top_p=np.where(is_even, 1, 0.5),
        min_p=np.where(is_even, 0, 0.5),
    )
    np.testing.assert_array_equal(mixed[is_even], plain[is_even])


def test_uniforms_come_from_each_rows_seed_alone():
    seeds = [3, 4, 3, 3 + 2**32, 3 + 2**70]
    long = draw_uniforms(seeds, 1000)
    assert long.dtype == np.float32
    assert long.shape == (5, 1000)
    np.testing.assert_array_equal(long[0], long[2])
    for other in (1, 3, 4):
        assert np.mean(long[0] == long[other]) < 0.01
    for row, seed in enumerate(seeds):  # also where another's is of more bits
        np.testing.assert_array_equal(draw_uniforms([seed], 7)[0], long[row, :7])


def mix(x):
    """The hash in integers without end."""
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def uniform(seed, counter):
    words = mix(mix(counter) ^ mix(seed ^ 0x9E3779B9))
    return min(words >> 8, 2**24 - 2) / 2**24


def test_uniforms_are_those_of_the_hash():
    seeds = [0, 1, 77, 2**31 - 1, 2**31, 2**32 - 1]
    expected = [[uniform(seed, counter) for counter in range(50)] for seed in seeds]
    np.testing.assert_array_equal(draw_uniforms(seeds, 50), expected)
    two_words = mix(5) ^ 6
    np.testing.assert_array_equal(
        draw_uniforms([(5 << 32) + 6], 9), draw_uniforms([two_words], 9)
    )


@pytest.mark.every_backend
@pytest.mark.parametrize("is_compiled", [False, True])
def test_uniforms_of_the_backend_are_those_of_numpy(is_compiled):
    def draw(state, inputs):
        del state
        return draw_uniforms_by_ops(inputs["seeds"], 1000)

    seeds = [0, 1, 2, 12345, 2**16, 2**31 - 1]
    draw = compile_function(draw, []) if is_compiled else draw
    drawn = draw({}, {"seeds": ops.convert_to_tensor(seeds, "int32")})
    np.testing.assert_array_equal(
        ops.convert_to_numpy(drawn), draw_uniforms(seeds, 1000)
    )


@pytest.mark.parametrize("first", [0, 10**6, 2**31 - 512])
def test_uniforms_are_uniform_and_independent(first):
    # Each figure is a standard normal of a perfect generator. Of 4,000 such figures one
    # in 2,000 such tests would be beyond 5.5; these are what they are for good.
    rows, columns = 512, 512
    uniforms = draw_uniforms(range(first, first + rows), columns).astype("float64")
    centred = (uniforms - 0.5) * 12**0.5

    def chi_squared(places, num_buckets):
        counts = np.bincount(places.ravel(), minlength=num_buckets)
        expected = places.size / num_buckets
        chi = np.sum((counts - expected) ** 2 / expected)
        return (chi - num_buckets + 1) / np.sqrt(2 * (num_buckets - 1))

    coarse = (uniforms * 32).astype(int)
    figures = [
        chi_squared((uniforms * 1024).astype(int), 1024),
        # the lowest bits too, and pairs of neighbours
        chi_squared((uniforms * 2**24).astype(int) % 256, 256),
        chi_squared(coarse[:, 1:] * 32 + coarse[:, :-1], 1024),
        chi_squared(coarse[1:] * 32 + coarse[:-1], 1024),
        *centred.sum(axis=0) / np.sqrt(rows),
        *centred.sum(axis=1) / np.sqrt(columns),
    ]
    for step in (1, 2, 16):
        for later, earlier in (
            (centred[:, step:], centred[:, :-step]),
            (centred[step:], centred[:-step]),
            (centred[step:, step:], centred[:-step, :-step]),
        ):
            products = later * earlier
            figures.append(products.sum() / np.sqrt(products.size))
            figures += [*products.sum(axis=0) / np.sqrt(len(products))]
            figures += [*products.sum(axis=1) / np.sqrt(products.shape[1])]
    assert np.abs(figures).max() < 5.5


def test_no_uniform_is_1_after_a_product():
    # one of this seed's has 24 bits that are all 1
    uniforms = draw_uniforms([1753], 4096)
    largest = uniforms.max()
    assert largest == np.float32(1 - 2**-23)
    totals = np.random.default_rng(0).uniform(0.01, 2, 1000).astype("float32")
    assert np.all(largest * totals < totals)


@pytest.mark.every_backend
def test_penalty_divides_positive_and_multiplies_negative_logits_that_were_seen():
    logits = np.array([[2.0, -2.0, 3.0, -3.0], [2.0, -2.0, 3.0, -3.0]], "float32")
    seen = np.array([[True, True, False, False], [True, False, True, False]])
    output = penalize_repetition(
        *(ops.convert_to_tensor(x) for x in (logits, seen)),
        ops.convert_to_tensor(np.array([2.0, 1.0], "float32")),
    )
    expected = [[1.0, -4.0, 3.0, -3.0], [2.0, -2.0, 3.0, -3.0]]
    np.testing.assert_array_equal(ops.convert_to_numpy(output), expected)


@pytest.mark.every_backend
def test_log_probs_are_those_of_the_softmax():
    logits = np.random.default_rng(0).normal(scale=50, size=(5, 9)).astype("float32")
    token_ids = np.array([0, 8, 3, 3, 5], "int32")
    output = chosen_log_probs(
        ops.convert_to_tensor(logits), ops.convert_to_tensor(token_ids)
    )
    shifted = logits.astype("float64") - logits.max(-1, keepdims=True)
    expected = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    # float32 logits of about 100 are known to 1e-5
    np.testing.assert_allclose(
        ops.convert_to_numpy(output), expected[np.arange(5), token_ids], atol=5e-5
    )


def sorted_choice(logits, temperature, top_k, top_p, min_p, place):
    """What a row draws, by a sort in float64, and whether no edge is near."""
    if temperature == 0:
        return int(np.argmax(logits)), True
    weights = np.exp((logits - logits.max()) / np.float32(temperature))
    support, margin = truncated(weights / weights.sum(), top_k, top_p)
    least = logits[support].min()  # with what is as likely as the last
    is_kept = (logits >= least) & (weights >= min_p)
    is_clear = np.abs(weights / np.float32(min_p) - 1).min() > 1e-5 if min_p else True
    is_clear &= margin > 1e-5 or top_p == 1
    ids = np.flatnonzero(weights >= min_p)
    while True:
        edges = np.cumsum(weights[ids]) / weights[ids].sum()
        is_clear &= np.abs(edges - place).min() > 1e-5
        token = ids[min(np.sum(edges <= place), len(ids) - 1)]
        if is_kept[token]:
            return token, is_clear
        ids = ids[weights[ids] > weights[token]]
        place = uniform(int(place * 2**24), 0)


@pytest.mark.every_backend
@pytest.mark.parametrize("way", ways)
@pytest.mark.parametrize("size", [3, 65, 7001])
def test_a_row_draws_what_a_sort_would_whatever_its_neighbours_ask(size, way):
    # 64 are sorted at once, and 64 to a block: fewer, few more, and many with a rest
    random = np.random.default_rng(size)
    rows = 96
    scales = random.choice([0.0, 0.01, 0.3, 1.0, 3.0, 10.0], size=rows)
    logits = scales[:, None] * random.normal(size=(rows, size))
    is_tied = random.random(rows) < 0.3
    logits[is_tied] = np.round(logits[is_tied])
    logits = logits.astype("float32")
    some = [1, 2, 40, 63, 64, 65, 100, 300, 1000, size - 1, size, 1 << 30]
    controls = {
        "temperature": random.choice([0, 1e-3, 0.3, 0.8, 1, 2, 100], rows),
        "top_k": random.choice(some + [1 << 30] * 6, rows),
        "top_p": random.choice([1e-6, 0.1, 0.5, 0.9, 0.95, 0.999, 1, 1, 1], rows),
        "min_p": random.choice([0, 0, 0, 1e-3, 0.1, 0.5, 1], rows),
    }
    controls = {
        k: v.astype("int32" if k == "top_k" else "float32") for k, v in controls.items()
    }
    uniforms = random.random(rows).astype("float32")
    mixed = sample(logits, uniforms, **controls, way=way)
    compared = 0
    for row in range(rows):
        expected, is_clear = sorted_choice(
            logits[row].astype("float64"),
            *(x[row] for x in controls.values()),
            uniforms[row],
        )
        compared += is_clear
        assert mixed[row] == expected or not is_clear
        in_numpy = choose_in_numpy(
            logits[row], *(x[row] for x in controls.values()), uniforms[row]
        )
        assert in_numpy == expected or not is_clear
    assert compared > 0.7 * rows
    # in a batch of the same shape, whose other rows are greedy
    for row in range(0, rows, 24):
        alone = {name: np.array(x) for name, x in controls.items()}
        alone["temperature"][np.arange(rows) != row] = 0
        assert sample(logits, uniforms, **alone, way=way)[row] == mixed[row]


def test_the_likeliest_is_kept_where_top_p_is_0_in_float32():
    logits = np.array([1, 3, 2], "float32")
    top_p = np.float32(1e-50)
    assert choose_in_numpy(logits, np.float32(1), 3, top_p, np.float32(0), 0.9) == 1
