"""What the routes are handed: one object made by the app, nothing global."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from gateway.auth import Auth
from gateway.fetch import Fetcher
from gateway.intake import Connections, Intake
from gateway.loras.broadcast import Broadcast
from gateway.loras.catalogue import Catalogue
from gateway.metrics import Metrics
from gateway.quota import Quota
from gateway.results import Results
from gateway.serving import Serving
from gateway.settings import Settings
from gateway.store.epochs import Nickname
from gateway.traces import Traces
from shared.cards import ModelCard
from shared.errors import NotReady, UnknownModel
from shared.messages import WantedModel

# From what a client calls a LoRA, and the field it said that in, to its file, which stays where it is.
FindLora = Callable[[str, str], Awaitable[Nickname]]


@dataclass(frozen=True, slots=True)
class State:
    """The server behind the routes; `created` is its start in Unix seconds."""

    settings: Settings
    serving: Serving
    metrics: Metrics
    results: Results
    fetcher: Fetcher
    intake: Intake
    connections: Connections
    traces: Traces
    loras: Broadcast
    find_lora: FindLora
    catalogue: Catalogue
    auth: Auth
    quota: Quota
    created: int

    @property
    def default_model(self) -> str:
        """The model of a request that names none: the first that was configured."""
        return self.serving.pool.wanted.models[0].id

    def resolve(self, name: str | None) -> str:
        """The configured model that a request means by this name, which may be an alias. Raises UnknownModel."""
        if name is None:
            return self.default_model
        if not any(model.id == name for model in self.serving.pool.wanted.models):
            for pattern, model in self.settings.aliases():
                if fnmatchcase(name, pattern):
                    return model or self.default_model
        return self.wanted(name).id

    def wanted(self, model: str) -> WantedModel:
        """The configured model of this id. Raises UnknownModel."""
        for wanted in self.serving.pool.wanted.models:
            if wanted.id == model:
                return wanted
        raise UnknownModel(f"The model '{model[:256]}' does not exist.", param="model")

    def find_card(self, model: str) -> ModelCard | None:
        """What this model can do, if any worker holds it."""
        self.wanted(model)
        workers = self.serving.pool.workers.values()
        return next((card for worker in workers if (card := worker.card(model))), None)

    def card(self, model: str) -> ModelCard:
        """What this model can do. Raises UnknownModel, or NotReady while no worker holds it."""
        card = self.find_card(model)
        if card is None:
            raise NotReady(f"No replica of '{model}' is ready; GET /readyz says why.", retry_after_seconds=2)
        return card
