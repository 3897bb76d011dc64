"""From a plan to numbers: its time, what each chip holds, its energy. Knows no ranking."""
