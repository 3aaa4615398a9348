"""Check evidence without the rest of llmxai: the standard library and `cryptography` are enough.

Copy this folder anywhere and run it unchanged: `python verifier RUN --pubkey KEY.pub`.
"""
