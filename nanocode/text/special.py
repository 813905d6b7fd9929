"""The special tokens: structure of a conversation that no text can spell.

Their ids are their positions here, so BOS is 0. Text that happens to contain such a name is encoded byte by byte.
"""

BOS = "<|bos|>"
USER_START = "<|user_start|>"
USER_END = "<|user_end|>"
ASSISTANT_START = "<|assistant_start|>"
ASSISTANT_END = "<|assistant_end|>"
TOOL_CALL_START = "<|tool_call_start|>"
TOOL_ARG = "<|tool_arg|>"
TOOL_VAL = "<|tool_val|>"
TOOL_CALL_END = "<|tool_call_end|>"
TOOL_RESULT_START = "<|tool_result_start|>"
TOOL_RESULT_END = "<|tool_result_end|>"

SPECIAL_TOKENS = (
    BOS,
    USER_START,
    USER_END,
    ASSISTANT_START,
    ASSISTANT_END,
    TOOL_CALL_START,
    TOOL_ARG,
    TOOL_VAL,
    TOOL_CALL_END,
    TOOL_RESULT_START,
    TOOL_RESULT_END,
)
