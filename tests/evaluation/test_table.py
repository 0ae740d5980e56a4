import math

from fptq_onnx.evaluation.evaluate import Evaluation
from fptq_onnx.evaluation.lambada import LastWordFigures
from fptq_onnx.evaluation.perplexity import WindowFigures
from fptq_onnx.evaluation.standard_errors import Estimate
from fptq_onnx.evaluation.table import evaluation_table


def test_every_figure_has_its_line() -> None:
    windows = WindowFigures(
        windows=1,
        predictions=63,
        perplexity=Estimate(14.03951, None),
        perplexity_reference=Estimate(13.91649, 0.54),
        perplexity_ratio=Estimate(1.00884, 0.00107),
        kl=Estimate(0.00651, 0.00009),
        kl_max=1.0,
        top1=Estimate(0.94434, 0.0017),
        positions=64,
    )
    words = LastWordFigures(
        passages=57,
        shortened=19,
        accuracy=Estimate(0.25, 0.0625),
        perplexity=Estimate(math.inf, None),
        accuracy_reference=Estimate(0.5, 0.0625),
        perplexity_reference=Estimate(74831193.5, 9836966.7),
        accuracy_change=Estimate(-0.25, 0.125),
    )
    lines = evaluation_table(Evaluation("new", "old", "text.txt", 64, (1,), (), windows, words))
    assert lines == [
        "model      new",
        "reference  old",
        "data       text.txt: 1 windows of up to 64 tokens, 63 predicted, "
        "57 passages (19 shortened to the model's context)",
        "",
        "                              model     s.e.  reference       s.e.",
        "perplexity                  14.0395        -    13.9165     0.5400",
        "perplexity / reference's    1.00884  0.00107",
        "KL to reference (nats)      0.00651  0.00009",
        "top-1 agreement              0.9443   0.0017",
        "last-word accuracy           0.2500   0.0625     0.5000     0.0625",
        "last-word accuracy, change  -0.2500   0.1250",
        "last-word perplexity            inf        -  7.483e+07  9.837e+06",
    ]
    alone = evaluation_table(
        Evaluation("new", None, "t", 64, (1,), (), WindowFigures(2, 126, Estimate(8.5, 0.25)), None)
    )
    assert alone[-2:] == ["             model    s.e.", "perplexity  8.5000  0.2500"]
