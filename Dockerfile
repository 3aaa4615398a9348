# syntax=docker/dockerfile:1
# llmxai with JupyterLab. docs/image.md says how to build and run it, and what of it was never run.
# python:3.12-slim-bookworm as of 2026-10-02, for every platform. `make base-image` looks up the current digest.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm@sha256:54c85f3c47607a77f32adec749d3c81d1348bf25833671f512b26a9b6d778cb3

FROM ${PYTHON_IMAGE} AS build
# Empty: torch as locked, from PyPI (the CUDA build). TORCH_INDEX=https://download.pytorch.org/whl/cpu: as locked, without
# CUDA. Anything else (TORCH_VERSION=2.9.1, .../whl/cu126) has no hashes in locks/ and needs TORCH_UNLOCKED=1.
ARG TORCH_VERSION=
ARG TORCH_INDEX=
ARG TORCH_UNLOCKED=
WORKDIR /src
COPY pyproject.toml README.md ./
COPY locks locks
COPY docker/install.sh docker/
# The dependencies first: a change of the code does not install torch again
RUN docker/install.sh dependencies /opt/llmxai
COPY setup.py LICENSE ./
COPY recipes recipes
COPY llmxai llmxai
COPY docker/jupyter_guard.py docker/
RUN docker/install.sh package /opt/llmxai

FROM ${PYTHON_IMAGE} AS runtime
# git-lfs: maps are archived with it. openssh-server: off unless LLMXAI_SSH=1. tini: hands signals on.
# hadolint ignore=DL3008,SC2016
RUN apt-get update \
    && apt-get install -y --no-install-recommends git git-lfs openssh-server tini \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_* \
    && git lfs install --system \
    && useradd --create-home --uid 1000 --shell /bin/bash llmxai \
    && install -d -o llmxai -g llmxai /work /cache \
    && echo 'PATH=/opt/llmxai/bin:$PATH' > /etc/profile.d/llmxai.sh
COPY --from=build /opt/llmxai /opt/llmxai
COPY --chmod=755 docker/entrypoint.sh docker/healthcheck.sh /usr/local/bin/
ENV PATH=/opt/llmxai/bin:$PATH \
    LLMXAI_CACHE=/cache/llmxai \
    HF_HOME=/cache/huggingface \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /work
VOLUME ["/work", "/cache"]
EXPOSE 8888
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 CMD ["healthcheck.sh"]
ENTRYPOINT ["tini", "--", "entrypoint.sh"]
CMD ["lab"]
