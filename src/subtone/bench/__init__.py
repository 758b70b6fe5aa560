"""How fast our kernels are: beside whichever peers are installed, and beside what the machine can do at all.

`subtone bench kernels` runs it. No peer is needed: each is imported where it is asked for, and one that is not
installed is left out. All multiply the same weights, so that what a candidate gives is checked before it is timed.

`products` says what is multiplied, `workloads` and `peers` make candidates of it, `turns` times them in turn, `bounds`
measures the machine, `kernels` puts a run together, `shown` prints it.
"""
