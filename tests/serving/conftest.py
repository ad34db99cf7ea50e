"""One server for all tests, in this process, with a small network of random weights; and the same texts without it."""

import contextlib
import threading
from dataclasses import replace

import mindspore as ms
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

TEXT = "a rose is a rose is a rose, the rose is here; 你好, héllo"
CONTEXT = 128
MAX_BATCH = 4


@pytest.fixture(scope="session")
def folder(tmp_path_factory, cpu):
    """A model and its tokenizer, of whose tokens many are parts of characters."""
    from mindgpt.checkpoints.gpt2_config import GPT2Config
    from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
    from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer

    folder = tmp_path_factory.mktemp("served") / "toy"
    tokenizer = GPT2Tokenizer.train([TEXT] * 3, 290)
    ms.set_seed(0)
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "seq_length": CONTEXT, "initializer_range": 0.2}
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def service(folder):
    """What `server` serves."""
    from mindgpt.serving.command import build_service
    from mindgpt.serving.server_options import ServerOptions

    made = build_service(str(folder), None, None, ServerOptions(port=0, max_batch=MAX_BATCH))
    yield made
    made.scheduler.stop()


@contextlib.contextmanager
def running(service):
    """Serves; the URL."""
    from mindgpt.serving.http_server import HttpServer, address_of, bound_socket

    bound = bound_socket(service.options)
    started = threading.Event()
    server = HttpServer(service, started.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    assert started.wait(30)
    try:
        yield address_of(bound)
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="session")
def server(service):
    """The URL of the server that most tests ask."""
    with running(service) as url:
        yield url


@pytest.fixture
def strict(service):
    """(**options) -> a context manager: another server of the same model, with these options; its URL."""
    from mindgpt.serving.application import Service
    from mindgpt.serving.served_model import ServedModel
    from mindgpt.serving.server_metrics import ServerMetrics

    def start(**changes):
        options = replace(service.options, **changes)
        model = ServedModel(service.model.pipe, "toy", options)
        return running(Service(model, service.scheduler, ServerMetrics(), options))

    return start


@pytest.fixture(scope="session")
def client(server):
    """The official client."""
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def alone(service):
    """(prompts, **settings) -> the completions of these prompts without the server."""
    from mindgpt.generation import GenerationSettings, Generator, generate_text

    generator = Generator(service.model.pipe.model)
    eos = service.model.tokenizer.eos_token_id

    def complete(prompts, **settings):
        settings = GenerationSettings(**{"eos_token_id": eos} | settings)
        return generate_text(generator, service.model.tokenizer, prompts, settings)

    return complete
