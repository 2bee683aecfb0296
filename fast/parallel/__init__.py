"""One model on several processes: linears' outputs or layers are cut, no sum changes its order.

Where linears are cut, a process computes some outputs of each from the whole input and gathers the
others', so each float is the one that a single process computes, bit for bit. Four gathers a layer:

    q, k, v of some heads | attention | gather -> o, some outputs | gather + norm
    gate, up, some outputs            | gather -> down, some outputs | gather + norm

cut            some outputs of a linear, as views of the file where tiles allow it
shards         the linears of a model, cut for one of several processes
backend        a backend whose linears are cut: computes, then gathers
mesh           devices, and where each array goes: one device, or a mesh of them
streams        connections on which arrays pass: activations, results, what to run
stages         the layers in stages, each on its own processes
programs       programs that run on every device of a mesh
group          processes that find each other, compare what they run and watch each other
leading        a session whose programs the other processes run, too
collectives    jax's connections between the processes of a group
connecting     from a group of processes to an engine's options
"""
