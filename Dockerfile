# syntax=docker/dockerfile:1
# llmxai with JupyterLab. docs/image.md says how to build and run it, and what of it was never run.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# The version of torch in requirements.lock; another one (2.9.1, say) is an argument, and so is the index it comes from:
# https://download.pytorch.org/whl/cu126 for CUDA 12.6, .../whl/cpu for no CUDA. Empty: the CUDA build on PyPI.
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=
WORKDIR /src
COPY requirements.lock pyproject.toml README.md ./
COPY docker/install.sh docker/notebook.lock docker/
# The dependencies first: a change of the code does not install torch again
RUN docker/install.sh dependencies /opt/llmxai
COPY llmxai llmxai
RUN docker/install.sh package /opt/llmxai

FROM ${PYTHON_IMAGE} AS runtime
# git-lfs: maps are archived with it. openssh-server: off unless LLMXAI_SSH=1. tini: hands signals on.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git git-lfs openssh-server tini \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_* \
    && git lfs install --system \
    && useradd --create-home --uid 1000 --shell /bin/bash llmxai \
    && install -d -o llmxai -g llmxai /work /cache
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
