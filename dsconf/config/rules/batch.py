"""train_batch_size = train_micro_batch_size_per_gpu × gradient_accumulation_steps × data-parallel ranks."""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.config.batch import Batch, data_parallel_ranks, problem
from dsconf.config.finding import Edit, Problem, SetValue
from dsconf.config.rules.case import Case, block, whole

TRAIN, MICRO, ACCUMULATION = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"


def missing(case: Case) -> Iterator[Problem]:
    """Find configs without a batch size: accumulation alone does not say how large a batch is
    (runtime/config.py:648-650)."""
    if case.config.get(TRAIN) is None and case.config.get(MICRO) is None:
        value = '"auto"' if case.target != "deepspeed" else "a number"
        yield Problem("DS201", "error", (), f"neither {TRAIN} nor {MICRO} is given", f"set {MICRO} to {value}")


def _given(case: Case) -> Batch | None:
    """Return the batch sizes, or None where one of them is not known yet or wrong by itself."""
    values = [case.config.get(key) for key in (TRAIN, MICRO, ACCUMULATION)]
    if any(value is not None and (isinstance(value, (bool, str)) or (whole(value) or 0) <= 0) for value in values):
        return None
    return Batch(*(None if value is None else whole(value) for value in values))


def indivisible(case: Case) -> Iterator[Problem]:
    """Find batch sizes that do not agree (runtime/config.py:586-605). Without --gpus it is enough that some number of
    GPUs makes them agree."""
    batch = _given(case)
    if batch is None or batch.train is None:
        return
    unit = (batch.micro or 1) * (batch.accumulation or 1)
    if batch.train % unit:
        given = " × ".join(str(n) for n in (batch.micro, batch.accumulation) if n)
        yield Problem("DS202", "error", (TRAIN,), f"{batch.train} is not a multiple of {given}", "change one of them")
    elif case.gpus is not None:
        sharing = whole(case.config.get("sequence_parallel_size", 1))
        ranks = data_parallel_ranks(case.config, case.gpus) if sharing else case.gpus
        wrong = problem(batch, ranks)
        if wrong is not None:
            advice = f"{TRAIN} may be any multiple of {unit * ranks}"
            fix: tuple[Edit, ...] = ()
            if batch.micro and batch.accumulation:
                advice = f"write {unit * ranks}, or leave {TRAIN} out"
                fix = (SetValue((TRAIN,), unit * ranks),)
            yield Problem("DS202", "error", (TRAIN,), wrong, advice, fix)


def uneven_groups(case: Case) -> Iterator[Problem]:
    """Find groups that share a sequence, a layer or experts and do not divide the world (utils/groups.py:202-226)."""
    if case.gpus is None:
        return
    experts = block(case.config, "expert_parallel")
    sizes = {
        ("sequence_parallel_size",): whole(case.config.get("sequence_parallel_size")),
        ("tensor_parallel", "autotp_size"): whole(block(case.config, "tensor_parallel").get("autotp_size")),
        ("expert_parallel", "autoep_size"): whole(experts.get("autoep_size")) if experts.get("enabled") is True else 1,
    }
    for path, size in sizes.items():
        if size is not None and size > 1 and case.gpus % size:
            message = f"{case.gpus} GPUs cannot be split into groups of {size}"
            yield Problem("DS203", "error", path, message, f"use a number that divides {case.gpus}")


def accumulation_left_out(case: Case) -> Iterator[Problem]:
    """Find configs without accumulation: Accelerate, under the HF Trainer too, puts 1 for it
    (DeepSpeedPlugin.__post_init__)."""
    if case.target != "deepspeed" and ACCUMULATION not in case.config and "zero_optimization" in case.config:
        message = f"without {ACCUMULATION} Accelerate takes 1, whatever the script or the command line says"
        yield Problem("DS204", "note", (), message, f'add "{ACCUMULATION}": "auto"')
