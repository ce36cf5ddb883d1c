# deploy-rnn serve, without torch and without onnx. In a checkout:
#
#   docker build -t deploy-rnn .
#   docker run --rm --read-only -v ./bundles:/bundles:ro -p 8000:8000 -p 8001:8001 deploy-rnn
#
# For a GPU:    docker build -t deploy-rnn:cuda --build-arg "ONNXRUNTIME=onnxruntime-gpu[cuda,cudnn]" .
# With traces:  docker build -t deploy-rnn --build-arg EXTRAS=serving,otel .
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG ONNXRUNTIME=onnxruntime
ARG EXTRAS=serving
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE constraints.txt ./
COPY deploy_rnn deploy_rnn
COPY export export
COPY serving serving
RUN python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install --no-cache-dir -c constraints.txt ".[${EXTRAS}]" "${ONNXRUNTIME}"

FROM python:${PYTHON}-slim
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH
# A number, so that Kubernetes can see that it is not root.
USER 1000:1000
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
# A list, so that the server itself gets SIGTERM, and answers what it has accepted.
ENTRYPOINT ["deploy-rnn", "serve"]
CMD ["/bundles", "--host", "0.0.0.0"]
