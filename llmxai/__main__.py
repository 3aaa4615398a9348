"""`python -m llmxai`: what `accelerate launch -m llmxai run ...` starts."""

from llmxai.cli import main

main()
