"""The kinds of collective: what they are called, and whose the pieces are that they move.

`all_reduce` adds what all chips hold, `reduce_scatter` leaves each chip a share of the sum,
`all_gather` brings every share to every chip, `all_to_all` brings each chip its share of everyone's
data; `send` moves a vector from one chip of the run to another, `broadcast` to all of them, and
`hand_over` from a group of chips that all hold it to all chips of another. Not modelled: barriers.
"""

#: Priced in closed form, over runs of chips (`links`); a hand-over is priced as such.
PRICED_KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
#: Listed link by link (`link_schedule`).
LISTED_KINDS = (
    "all_reduce",
    "broadcast",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "send",
    "hand_over",
)
#: Kinds in which each chip has, or gets, pieces of its own, which are whole vectors; a vector that
#: all chips have, or get, is cut at will.
OWN_PIECES = ("all_gather", "reduce_scatter", "all_to_all")
