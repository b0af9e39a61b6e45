"""What the terms in tables mean, for `--explain`."""

from __future__ import annotations

TERMS = {
    "95 % interval": "of the end-to-end median, by signed ranks over rounds.",
    "attainable": "the least of the machine's peak, and of its bandwidth times op/byte, measured in"
    " the same rounds (roofline model).",
    "accuracy lost": "top-1 of the float64 model minus the engine's, with Tango's 95 % interval.",
    "batch": "rows in one inference; `assay bench --batch` chooses.",
    "borne": 'whether the queue does not grow and p99 keeps --p99; "no" names what fails.',
    "busy": "other processes slowed the engine or its baseline down, so that no ratio is given.",
    "computed in": "the types that the engine's layers compute in, as its library reports them.",
    "CPU time": "of all threads, for one inference; waiting by spinning counts.",
    "end to end": "median time of one inference from arrays on the host to arrays on the host.",
    "error x floor": "root mean square error, in units of the model's own rounding noise: how far"
    " rounding at this precision moves PyTorch's outputs away from float64.",
    "flips": "test images that get another class than in float64; N+M: N that rounding does not"
    " explain, and M between classes that are closer than the allowed error.",
    "images/s": "batch size over the end-to-end median, one inference at a time; after a sweep,"
    " what all sessions served.",
    "sessions x threads": "how often the engine was open, each with a client of its own, and the"
    " CPU threads of one inference.",
    "images/s served": "images that sessions answered in each second, at the same time.",
    "load": "rate x mean time in which a request occupies a session / sessions; from 100 % on, the"
    " queue grows without end.",
    "max error": "largest difference to float64 of any value in any row.",
    "max x floor": "the largest error of a row, in units of that row's rounding noise.",
    "multiply-adds": "products of matrices and convolutions, for one row.",
    "Gop": "10^9 operations of convolutions and matrix products in one inference; a multiply-add is"
    " two.",
    "offered/s": "requests that arrive in each second, at random moments.",
    "on device": "median time of one inference from launch to completion, with the inputs and"
    " outputs in the device's memory.",
    "op/byte": "operations for each byte of weights, inputs and outputs.",
    "latency": "median time of one request end to end.",
    "p99": "99 of 100 inferences took at most this long end to end.",
    "rms error": "root mean square difference to float64 over all values.",
    "rms x floor": "root mean square over the rows of their errors, each in units of its own"
    " rounding noise.",
    "share": "part of the attainable that the engine reaches, with an interval.",
    "speed": "time of the baseline over the engine's, in the same rounds, with a 95 % interval;"
    " none is given if the interval spans more than a factor of 3.",
    "rows/s": "batch size over the end-to-end median; one inference at a time.",
    "rows/s served": "rows that sessions answered in each second, at the same time.",
    "SQNR (dB)": "signal to quantization noise ratio; at 10 dB the noise is a third of the signal.",
    "served/s": "requests answered in each second.",
    "sessions": "how often the engine was open, each with a client or a server of its own.",
    "top-1": "part of the test images whose largest logit is that of the right class.",
    "verdict": "pass: equal to PyTorch but for rounding; mismatch: it computes something else;"
    " vacuous: the outputs cannot tell; not run: this machine cannot run it; crashed, failed: its"
    " process ended, or the engine could not be opened.",
    "waiting": "requests that had arrived and not begun when the last one arrived.",
    "weights": "weights of the checkpoint that are in the graph, of those that were looked for.",
}
