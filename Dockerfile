# Two images of one distribution: `--target operator` and `--target trainer`; docs/decisions/0006 says why so.
# Any builder does it (docker, podman, buildah), from any Debian-like base with Python 3.11 or newer and its venv module.
ARG BASE=python:3.12-slim

# Tools of the build, locked; nothing of this stage reaches an image but what is copied out by name.
FROM ${BASE} AS build
# UV_SYSTEM_CERTS: who builds behind a proxy of their own brings its certificate with the base.
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_SYSTEM_CERTS=1
WORKDIR /src
COPY requirements/build.txt requirements/build.txt
RUN python3 -m venv /tools \
    && /tools/bin/pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/build.txt

# The project alone, in an environment without its dependencies: a layer of its own, small at every release.
FROM build AS app
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY store store
COPY operator operator
COPY report report
COPY trainer trainer
COPY cli cli
RUN python3 -m venv --without-pip /opt/distillchain \
    && /tools/bin/uv build --quiet --wheel --no-build-isolation --python /tools/bin/python --out-dir /wheel . \
    && /tools/bin/uv pip install --quiet --no-deps --python /opt/distillchain/bin/python /wheel/*.whl

FROM build AS operator-dependencies
COPY requirements/operator.txt requirements/operator.txt
RUN python3 -m venv --without-pip /opt/distillchain \
    && /tools/bin/uv pip sync --quiet --require-hashes --python /opt/distillchain/bin/python requirements/operator.txt

FROM ${BASE} AS operator
COPY --from=operator-dependencies /opt/distillchain /opt/distillchain
COPY --from=app /opt/distillchain /opt/distillchain
# PYTHONSAFEPATH: `python -m` looks for no module in the folder it is started in.
ENV PATH=/opt/distillchain/bin:$PATH HOME=/tmp USER=distillchain \
    PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
# Official images of Python lack the bytecode of the standard library, and a container cannot write it: each start of the
# trainer would compile 230 modules, which takes a second. Our own packages are compiled by uv.
RUN python -m compileall -q --invalidation-mode unchecked-hash -x '/(tests?|idlelib|site-packages|dist-packages)/' \
    "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
WORKDIR /
ARG BASE VERSION=unknown REVISION=unknown SOURCE=unknown LICENSES=Apache-2.0
# Does nothing, but ends the cache where the labels begin: buildah takes a cached LABEL whatever its arguments are now.
RUN : "${BASE} ${VERSION} ${REVISION} ${SOURCE} ${LICENSES}"
USER 65532:65532
ENTRYPOINT ["python", "-m", "distillchain_operator"]
LABEL org.opencontainers.image.title="distillchain-operator" \
      org.opencontainers.image.description="Carries out the DistillationChains of a Kubernetes cluster" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="${LICENSES}" \
      org.opencontainers.image.base.name="${BASE}"

FROM build AS trainer-dependencies
COPY requirements/trainer.txt requirements/trainer.txt
RUN python3 -m venv --without-pip /opt/distillchain \
    && /tools/bin/uv pip sync --quiet --require-hashes --python /opt/distillchain/bin/python requirements/trainer.txt

FROM ${BASE} AS trainer
# torch.compile on a GPU: Triton builds one small C file when it starts. It needs a C compiler and Python's headers, which
# official images of Python contain. Without them, large students train 15 to 25 % slower. COMPILER="" leaves them out.
ARG COMPILER="gcc libc6-dev"
RUN if test -n "${COMPILER}"; then \
      headers="$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" \
      && apt-get update -qq \
      && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
        ${COMPILER} $(test -e "${headers}" || echo python3-dev) \
      && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log; \
    fi
COPY --from=trainer-dependencies /opt/distillchain /opt/distillchain
COPY --from=app /opt/distillchain /opt/distillchain
ENV PATH=/opt/distillchain/bin:$PATH HOME=/tmp USER=distillchain \
    PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
# Official images of Python lack the bytecode of the standard library, and a container cannot write it: each start of the
# trainer would compile 230 modules, which takes a second. Our own packages are compiled by uv.
RUN python -m compileall -q --invalidation-mode unchecked-hash -x '/(tests?|idlelib|site-packages|dist-packages)/' \
    "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
WORKDIR /
ARG BASE VERSION=unknown REVISION=unknown SOURCE=unknown LICENSES=Apache-2.0
RUN : "${BASE} ${VERSION} ${REVISION} ${SOURCE} ${LICENSES}"
USER 65532:65532
ENTRYPOINT ["python", "-m", "distillchain_trainer"]
LABEL org.opencontainers.image.title="distillchain-trainer" \
      org.opencontainers.image.description="Distils one stage of a DistillationChain and commits it to the store" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="${LICENSES}" \
      org.opencontainers.image.base.name="${BASE}"
