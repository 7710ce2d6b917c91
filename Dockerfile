# Images of loam, whose entry point is its command line: docker run loam train --help
#
#   docker build --target cpu -t loam .          docker build --target cuda -t loam:cuda .
#   docker run --init -v "$PWD/runs:/loam/runs" -v "$PWD/c4:/loam/data/c4" loam train --data_dir=data/c4 --out_dir=runs/c4
#
# The container is the sandbox: -P=loam lets the program do all that it ever needs.
FROM denoland/deno:bin-2.9.6 AS deno

FROM debian:bookworm-slim AS cpu
COPY --from=deno /deno /usr/local/bin/deno
RUN apt-get update \
  && apt-get install -y --no-install-recommends ca-certificates g++ libdnnl-dev libopenmpi-dev openmpi-bin \
  && rm -rf /var/lib/apt/lists/*
ENV DENO_NO_UPDATE_CHECK=1 DENO_NO_PROMPT=1
WORKDIR /loam
COPY . .
RUN deno install -q --frozen && deno task build --only=cpu
ENTRYPOINT ["deno", "run", "-q", "-P=loam", "mod.ts"]

# nvcc compiles for every card from sm_80 on; the driver is the host's (docker run --gpus all)
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS cuda
COPY --from=deno /deno /usr/local/bin/deno
RUN apt-get update \
  && apt-get install -y --no-install-recommends ca-certificates g++ libdnnl-dev \
  && rm -rf /var/lib/apt/lists/*
ENV DENO_NO_UPDATE_CHECK=1 DENO_NO_PROMPT=1
WORKDIR /loam
COPY . .
RUN deno install -q --frozen && deno task build --only=cpu,cuda
ENTRYPOINT ["deno", "run", "-q", "-P=loam", "mod.ts"]
