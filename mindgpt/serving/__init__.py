"""`mindgpt serve`: an HTTP server with OpenAI's completions API, continuous batching, metrics and a page.

`command.py` reads the command line; `served_model.py` turns a request into what has to be computed; `scheduler.py` is
the thread that owns the model and computes it; `application.py` has the routes. FastAPI, uvicorn and prometheus_client
(extra `serve`) are imported in this folder alone.
"""
