"""Check evidence without the rest of llmxai: the standard library and `cryptography` are enough.

This folder can be copied anywhere and run as it is: `python verifier RUN --pubkey KEY.pub`.
"""
