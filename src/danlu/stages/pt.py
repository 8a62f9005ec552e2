"""Continued pre-training: the documents, joined by the end-of-text token and cut into blocks."""

from danlu.core.records import Text
from danlu.data.encode import encode_texts
from danlu.data.packing import blocks_or_keep
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.base import STAGES, LossOutput, Stage


@STAGES.register("pt")
class PT(Stage):
    """L = - sum_t log pi(x_t | x_<t), divided by the tokens of the whole step (Bengio et al., 2003)."""

    record = Text
    encode = staticmethod(encode_texts)
    arrange = staticmethod(blocks_or_keep)
    needs_template = False
    packs_by_default = True

    def loss(self, micro: StreamTensors) -> LossOutput:
        return LossOutput(total=self.models.policy(micro))
