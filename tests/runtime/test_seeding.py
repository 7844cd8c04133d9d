from __future__ import annotations

from contextlib import suppress

import torch

from mapet.runtime.seeding import derive_seed, seed_all_devices, seeded_generator, seeded_globally

PARTS = [
    (),
    (0,),
    (1,),
    ("0",),
    (0, "order"),
    (0, "order", 0),
    (0, "order", 1),
    (0, "orders", 0),
    ("order", 0),
    (0, "a", "b"),
    (0, "ab"),
]


def test_every_part_and_its_type_count() -> None:
    assert len({derive_seed(*parts) for parts in PARTS}) == len(PARTS)


def test_it_stays_the_same_in_every_process_and_version() -> None:
    assert derive_seed(3, "drop path", 17) == 9068372196079376946


def test_generators_are_fresh_and_leave_the_global_one_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one, other = (torch.rand(5, generator=seeded_generator(4, "mask", 2)) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, torch.rand(5, generator=seeded_generator(4, "mask", 3)))
    assert torch.equal(torch.rand(3), expected)


def test_the_global_generator_is_restored_also_after_an_error() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with suppress(RuntimeError), seeded_globally(4, "objective"):
        inside = torch.rand(3)
        raise RuntimeError
    assert torch.equal(torch.rand(3), expected)
    with seeded_globally(4, "objective"):
        assert torch.equal(torch.rand(3), inside)


def test_the_global_generator_draws_as_torch_seeds_it() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(4, "drop path", 2))
        expected = torch.rand(3), torch.initial_seed()
        seed_all_devices(4, "drop path", 2)
        assert torch.equal(torch.rand(3), expected[0])
        assert torch.initial_seed() == expected[1]


def test_an_accelerator_is_seeded_too(monkeypatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    seed_all_devices(4, "drop path", 2)
    assert seeds == [derive_seed(4, "drop path", 2)]
