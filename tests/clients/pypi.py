"""One call of a client from PyPI, told in JSON on standard input: prints what it made of the answer, or what it raised.

python -I pypi.py CLIENT BASE_URL < {"model": "stub", "prompt": "a cat", ...}
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

# Nothing here is to look anything up elsewhere, or to tell anybody.
os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HAYSTACK_TELEMETRY_ENABLED": "False"}

Said = dict[str, Any]


def litellm_generate(url: str, said: Said) -> Any:
    import litellm

    answer = litellm.image_generation(
        **{**said, "model": f"openai/{said['model']}"}, api_base=url, api_key="none", max_retries=0
    )
    return answer.model_dump()


def litellm_edit(url: str, said: Said) -> Any:
    import litellm

    images = [open(path, "rb") for path in said.pop("images")]  # noqa: SIM115
    masked = {"mask": open(said.pop("mask"), "rb")} if "mask" in said else {}  # noqa: SIM115
    answer = litellm.image_edit(
        **{**said, "model": f"openai/{said['model']}"}, **masked, image=images, api_base=url, api_key="none"
    )
    return answer.model_dump()


def litellm_vary(url: str, said: Said) -> Any:
    import litellm

    with open(said["image"], "rb") as image:
        answer = litellm.image_variation(image=image, model=f"openai/{said['model']}", api_base=url, api_key="none")
    return answer.model_dump()


def haystack(url: str, said: Said) -> Any:
    from haystack.components.generators import OpenAIImageGenerator
    from haystack.utils import Secret

    key = Secret.from_token("none")
    generator = OpenAIImageGenerator(said["model"], size=said["size"], api_key=key, api_base_url=url, max_retries=0)
    return generator.run(said["prompt"])


def together(url: str, said: Said) -> Any:
    from together import Together

    client = Together(api_key="none", base_url=url.removesuffix("/v1"), max_retries=0)
    return client.images.generate(**said).model_dump()


def langchain(url: str, said: Said) -> Any:
    from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

    wrapper = DallEAPIWrapper(model=said["model"], n=said["n"], size=said["size"], base_url=url, api_key="none")
    return wrapper.run(said["prompt"])


CLIENTS: dict[str, Callable[[str, Said], Any]] = {
    each.__name__: each for each in (litellm_generate, litellm_edit, litellm_vary, haystack, together, langchain)
}

if __name__ == "__main__":
    name, url = sys.argv[1:]
    said = json.load(sys.stdin)
    try:
        # Some have more to say than their answer.
        with contextlib.redirect_stdout(sys.stderr):
            line = {"answer": CLIENTS[name](url, said)}
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        line = {"error": {"kinds": kinds, "status": getattr(error, "status_code", None), "message": str(error)}}
    print(json.dumps(line), flush=True)
