# deploy-rnn serve, without torch and without onnx. In a checkout:
#
#   docker build -t deploy-rnn .
#   docker run --rm --read-only -v ./bundles:/bundles:ro -p 8000:8000 -p 8001:8001 deploy-rnn
#
# For a GPU:    docker build -t deploy-rnn:cuda --build-arg "ONNXRUNTIME=onnxruntime-gpu[cuda,cudnn]" .
# With traces:  docker build -t deploy-rnn --build-arg EXTRAS=serving,otel .
#
# The Python of both stages must be the same: Debian 12 has 3.11, Debian 13 has 3.13.
ARG PYTHON=3.11
ARG DEBIAN=12

FROM python:${PYTHON}-slim AS build
ARG ONNXRUNTIME=onnxruntime
ARG EXTRAS=serving
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE constraints.txt ./
COPY deploy_rnn deploy_rnn
COPY export export
COPY serving serving
# Scripts name the interpreter of this stage. Tests are a tenth of what numpy brings.
RUN pip install --no-cache-dir --target /packages -c constraints.txt ".[${EXTRAS}]" "${ONNXRUNTIME}" \
    && rm -r /packages/bin \
    && find /packages -type d -name tests -prune -exec rm -r {} +

# Debian's Python and the libraries that it needs: no shell, no package manager.
FROM gcr.io/distroless/python3-debian${DEBIAN}:nonroot
COPY --from=build /packages /packages
ENV PYTHONPATH=/packages
# A number, so that Kubernetes can see that it is not root.
USER 1000:1000
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
# A list, so that the server itself gets SIGTERM, and answers what it has accepted.
ENTRYPOINT ["python3", "-m", "deploy_rnn", "serve"]
CMD ["/bundles", "--host", "0.0.0.0"]
