# A server, or any other verb of launch.py, on one kind of machine:
#   docker build --build-arg ACCELERATOR=cpu -t bigmodel-jax:cpu .
#   docker run --rm -p 8000:8000 -v "$PWD/runs:/app/runs" bigmodel-jax:cpu \
#       serve runs/mine --host 0.0.0.0 --port 8000
# ACCELERATOR is cpu, gpu (CUDA 13; run with --gpus all) or tpu (run with --privileged --net host).
ARG ACCELERATOR=cpu

FROM python:3.12-slim-bookworm AS base
ENV UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PYTHON_DOWNLOADS=never \
    PATH=/app/.venv/bin:$PATH
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /app
COPY pyproject.toml uv.lock README.md LICENSE ./

# The packages lie in a layer below the project's, so a change of the project installs none of them
# again.
FROM base AS cpu
ENV EXTRAS="--extra serve --extra pretrained"
RUN uv sync --locked --no-default-groups --no-install-project --extra serve --extra pretrained

FROM base AS gpu
ENV EXTRAS="--extra serve --extra pretrained --extra gpu"
RUN uv sync --locked --no-default-groups --no-install-project --extra serve --extra pretrained --extra gpu

FROM base AS tpu
ENV EXTRAS="--extra serve --extra pretrained --extra tpu"
RUN uv sync --locked --no-default-groups --no-install-project --extra serve --extra pretrained --extra tpu

# hadolint ignore=DL3006
FROM ${ACCELERATOR} AS server
WORKDIR /app
COPY launch.py ./
COPY bigmodel_jax bigmodel_jax
COPY configs configs
# hadolint ignore=SC2086
RUN uv sync --locked --no-default-groups ${EXTRAS} \
    && useradd --create-home --uid 10001 app \
    && mkdir -p runs \
    && chown app:app runs
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=300s --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["python", "launch.py"]
CMD ["--help"]
