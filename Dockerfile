# syntax=docker/dockerfile:1
# pgnear, configured by its environment alone: PGNEAR_ORIGIN is the only variable that must be set.

FROM python:3.12-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/pgnear
WORKDIR /src
# The hot path is compiled (setup.py); --build-arg ACCELERATE=0 leaves it in Python.
ARG ACCELERATE=1
RUN if [ "$ACCELERATE" != 0 ]; then \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
COPY pyproject.toml setup.py accelerate.ini README.md LICENSE ./
COPY protocol protocol
COPY config config
COPY pooler pooler
# Every dependency comes as a wheel.
RUN ACCELERATE="$ACCELERATE" /opt/pgnear/bin/pip install .

FROM python:3.12-slim-bookworm
LABEL org.opencontainers.image.title="pgnear" \
      org.opencontainers.image.description="A PostgreSQL connection pooler with a query cache" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin pgnear
COPY --from=build /opt/pgnear /opt/pgnear
ENV PATH=/opt/pgnear/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PGNEAR_LISTEN=0.0.0.0:6432 \
    PGNEAR_HTTP=0.0.0.0:9432
USER 10001:10001
WORKDIR /
EXPOSE 6432 9432
# Healthy means ready: every origin was reached and no shutdown has begun. The port is that of PGNEAR_HTTP.
HEALTHCHECK --interval=5s --timeout=3s --start-period=15s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PGNEAR_HTTP'].rpartition(':')[2]), timeout=2); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
# pgnear is process 1 and takes SIGTERM itself: it drains, then ends.
STOPSIGNAL SIGTERM
ENTRYPOINT ["pgnear", "serve"]
