"""Wrong conventions of models whose layers see near keys but for some that see all.

A part of `wrong_conventions`, which says what they are.
"""

from changes import in_array, in_model, in_part
from mistakes import Mistake

MISTAKES: dict[str, Mistake] = {
    "llama4: chunks taken for windows": Mistake(
        model="llama4", config=in_part("attention", is_chunked=False)
    ),
    "llama4: chunk one longer": Mistake(model="llama4", config=in_part("attention", window=7)),
    "llama4: every layer sees all keys": Mistake(
        model="llama4", config=in_model(sliding_layers=())
    ),
    "llama4: queries and keys not normalised": Mistake(
        model="llama4", config=in_part("attention", norms_rotated=False)
    ),
    "llama4: queries do not grow": Mistake(
        model="llama4", config=in_part("attention", warming=None)
    ),
    "llama4: halves turned instead of neighbours": Mistake(
        model="llama4", config=in_part("rope", interleaved=False)
    ),
    "llama4: slow pairs not slowed": Mistake(model="llama4", config=in_part("rope", scaling=None)),
    "llama4: the last layer turned too": Mistake(
        model="llama4", config=in_model(unrotated_layers=())
    ),
    "llama4: results weighed instead of rows": Mistake(
        model="llama4", config=in_part("moe", weighs_rows=False)
    ),
    "llama4: softmax of all scores": Mistake(
        model="llama4", config=in_part("moe", scoring="softmax")
    ),
    "llama4: no shared expert": Mistake(model="llama4", config=in_part("moe", n_shared=0)),
    "llama4: gate after up": Mistake(
        model="llama4", arrays=in_array("gate_up", lambda x: x[:, ::-1])
    ),
}
