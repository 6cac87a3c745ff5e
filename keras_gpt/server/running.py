"""Running a server until SIGTERM or Ctrl-C."""

import signal
import threading

from keras_gpt.server.settings import Settings


def run(lm, settings: Settings) -> None:
    """Serve a model until SIGTERM or Ctrl-C, after which what runs is still answered.

    A second signal doesn't wait for that.

    Args:
        lm: A `LanguageModel`.
        settings: Where and how.

    Raises:
        ImportError: FastAPI, uvicorn or prometheus-client isn't installed.
        SystemExit: The address is taken, with 1.
    """
    try:
        import uvicorn

        from keras_gpt.server.app import make_app
        from keras_gpt.server.logs import write_log
    except ModuleNotFoundError as error:
        raise ImportError(
            f"The server needs {error.name}. Run: pip install 'keras-gpt[server]'"
        ) from error

    app = make_app(lm, settings)
    write_log()

    class Server(uvicorn.Server):
        """Stops when all is answered, not when it is told to."""

        def handle_exit(self, sig: int, frame) -> None:
            """Take a signal."""
            scheduler = app.state.service.scheduler
            if scheduler.is_stopping:
                self.should_exit = True
                self.force_exit = sig == signal.SIGINT
                return
            scheduler.stop(settings.grace)
            threading.Thread(target=self._exit_after, args=[scheduler]).start()

        def _exit_after(self, scheduler):
            scheduler.join(settings.grace + 1)
            self.should_exit = True

    Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
    ).run()
