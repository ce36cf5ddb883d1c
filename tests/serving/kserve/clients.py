"""KServe's own clients, asked everything that they can: `clients.py HTTP GRPC TOKENS` prints the answers as JSON.

It runs in an environment of its own: KServe's protobuf messages and those of tritonclient cannot be in one process.
"""

import asyncio
import json
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig


def request(tokens, *, binary, name="tokens"):
    array = np.array(tokens, np.int64)
    tensor = InferInput(name, list(array.shape), "INT64")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest("tagger", [tensor])


def output(response):
    (output,) = response.outputs
    return {"name": output.name, "shape": list(output.shape), "values": output.as_numpy().tolist()}


async def ask_rest(protocol, url, tokens):
    answers = {}
    async with InferenceRESTClient(RESTConfig(protocol=protocol)) as client:
        answers["ready"] = await client.is_model_ready(url, "tagger")
        if protocol == "v1":
            body = {"instances": tokens}
            answers["predict"] = (await client.infer(url, body, "tagger"))["predictions"]
            objects = {"instances": [{"tokens": row} for row in tokens]}
            answers["predict objects"] = (await client.infer(url, objects, "tagger"))["predictions"]
            bad = client.infer(url, {"instances": [{"nothing": [1]}]}, "tagger")
        else:
            answers["server live"] = await client.is_server_live(url)
            answers["server ready"] = await client.is_server_ready(url)
            for binary in (False, True):
                response = await client.infer(url, request(tokens[:1], binary=binary), "tagger")
                answers["binary" if binary else "JSON"] = output(response)
            bad = client.infer(url, request(tokens[:1], binary=False, name="nothing"), "tagger")
        try:
            await bad
        except httpx.HTTPStatusError as error:
            answers["bad"] = f"{error.response.status_code} {error.response.json()['error']}"
        try:
            unknown = await client.is_model_ready(url, "nothing")
        except httpx.HTTPStatusError as error:
            unknown = error.response.status_code
        answers["unknown model"] = unknown
    return answers


async def ask_grpc(address, tokens):
    answers = {}
    async with InferenceGRPCClient(address) as client:
        answers["server live"] = await client.is_server_live()
        answers["server ready"] = await client.is_server_ready()
        answers["ready"] = await client.is_model_ready("tagger")
        answers["unknown model"] = await client.is_model_ready("nothing")
        for binary in (False, True):
            response = await client.infer(request(tokens[:1], binary=binary))
            answers["raw" if binary else "typed"] = output(response)
        try:
            await client.infer(request(tokens[:1], binary=True, name="nothing"))
        except grpc.RpcError as error:
            answers["bad"] = f"{error.code().name} {error.details()}"
    return answers


async def main():
    http, grpc_address, tokens = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    answers = {
        protocol: await ask_rest(protocol, f"http://{http}", tokens) for protocol in ("v1", "v2")
    }
    answers["grpc"] = await ask_grpc(grpc_address, tokens)
    print(json.dumps(answers))


asyncio.run(main())
