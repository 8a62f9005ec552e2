"""Supervised fine-tuning: maximise log pi(y|x) over the tokens of the answers."""

from danlu.core.records import Conversation
from danlu.data.encode import encode_conversations
from danlu.data.packing import pack_or_keep
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.base import STAGES, LossOutput, Stage


@STAGES.register("sft")
class SFT(Stage):
    """L = - sum_t w_t log pi(y_t | x, y_<t), divided by the supervised tokens of the whole step."""

    record = Conversation
    encode = staticmethod(encode_conversations)
    arrange = staticmethod(pack_or_keep)

    def loss(self, micro: StreamTensors) -> LossOutput:
        return LossOutput(total=self.models.policy(micro))
