from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from spaces.genotype import Architecture, Deployment, Genotype, Training
from spaces.record import digest, from_json, to_json
from spaces.space import Space

genotypes = st.builds(
    Genotype,
    st.builds(Architecture, st.sampled_from(["lstm", "gru"]), st.integers(1, 512)),
    st.builds(Training, st.floats(1e-6, 1.0), st.floats(0, 1), st.floats(0, 0.99)),
    st.builds(Deployment, st.just("loop"), st.integers(1, 64), st.just("rec8"), st.integers(1, 64)),
)


@settings(max_examples=40, deadline=None)
@given(genotypes)
def test_a_record_comes_back_from_json_as_it_went(genotype: Genotype) -> None:
    assert from_json(Genotype, to_json(genotype)) == genotype


def test_tuples_come_back_as_tuples() -> None:
    assert from_json(Space, to_json(Space())) == Space()


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(ValidationError, match="units"):
        from_json(Architecture, {"cell": "gru", "units": "many"})


@settings(max_examples=40, deadline=None)
@given(genotypes, genotypes)
def test_digests_are_equal_just_where_records_are(one: Genotype, other: Genotype) -> None:
    assert (digest(one) == digest(other)) == (one == other)
    assert digest(one) == digest(to_json(one))


def test_a_digest_tells_its_parts_apart() -> None:
    assert digest(b"ab", b"c") != digest(b"a", b"bc")
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_a_digest_is_the_same_on_every_machine() -> None:
    @dataclass(frozen=True)
    class Point:
        x: int

    assert digest(Point(1)) == "a2c1905314009570"  # sha256 of the length and the JSON


def test_candidates_of_one_group_differ_in_deployment_only() -> None:
    one = Genotype(Architecture("gru", 32), Training(), Deployment())
    served = replace(one, deployment=Deployment(bits="8"))
    trained = replace(one, training=Training(sparsity=0.5))
    assert one.group == served.group != trained.group
    assert len({one.key, served.key, trained.key}) == 3
