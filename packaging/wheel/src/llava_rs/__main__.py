"""`python -m llava_rs PROGRAM …`"""

from llava_rs import prefixed

prefixed()
