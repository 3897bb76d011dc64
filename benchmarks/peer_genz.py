"""Jobs of `bench_peers` in an environment with genz-llm: decode steps of many plans.

A plan is tensor and pipeline ranks: divisors of the heads and of the layers, as its own search of
plans has them.
"""

import warnings
from itertools import product

import GenZ
from worker import serve

MODEL, CONTEXT, MOST_GPUS = "meta-llama/Llama-3.1-70B", 8192, 64
#: TFLOP/s, GB, GB/s, GB/s of links and their latency in microseconds: an H100.
GPU = {
    "Flops": 989,
    "Memory_size": 80,
    "Memory_BW": 3350,
    "ICN": 450,
    "ICN_LL": 1,
    "real_values": True,
}


def _plans() -> list[tuple[int, int]]:
    """Tensor and pipeline ranks that hold the model's 141 GB."""
    config = GenZ.get_configs(MODEL)
    ways = product(
        sorted(set(GenZ.factors(config.num_attention_heads))),
        sorted(set(GenZ.factors(config.num_decoder_layers))),
    )
    return [(tensor, stages) for tensor, stages in ways if 4 <= tensor * stages <= MOST_GPUS]


def prepare(way: str) -> None:
    """Time one plan."""
    warnings.simplefilter("ignore")
    _decode(8, 1)


def _decode(tensor: int, stages: int) -> float:
    found = GenZ.decode_moddeling(
        model=MODEL,
        batch_size=1,
        Bb=1,
        input_tokens=CONTEXT,
        output_tokens=1,
        system_name=GPU,
        bits="bf16",
        tensor_parallel=tensor,
        pipeline_parallel=stages,
    )
    return float(found["Latency"])


def decode_moddeling(turn: int) -> int:
    """Time all plans; return how many. Nothing is kept from turn to turn."""
    plans = _plans()
    for tensor, stages in plans:
        _decode(tensor, stages)
    return len(plans)


if __name__ == "__main__":
    serve((prepare, decode_moddeling))
