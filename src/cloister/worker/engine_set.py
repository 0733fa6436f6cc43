"""The engines of one worker: one for each model, by the name that it is served under."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cloister.worker.pool import EnginePool


class EngineSet:
    """Every model's engine, in the order of the configuration; the first is the default one."""

    def __init__(self, engines: Sequence[EnginePool]) -> None:
        self._engines = {engine.model.name: engine for engine in engines}
        if not engines or len(self._engines) < len(engines):
            raise ValueError("a worker has engines, and each serves a model of another name")

    def __iter__(self) -> Iterator[EnginePool]:
        return iter(self._engines.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The models, in order."""
        return tuple(self._engines)

    @property
    def first(self) -> EnginePool:
        """The one that answers where nobody names a model."""
        return next(iter(self))

    def get(self, name: str) -> EnginePool | None:
        """The engine of the model `name`, or None."""
        return self._engines.get(name)

    @property
    def ready(self) -> bool:
        """Whether every engine answers."""
        return all(engine.ready for engine in self)

    async def start(self) -> None:
        """Start them one after the other; if one cannot, end the others and raise its error."""
        try:
            for engine in self:
                await engine.start()
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """End them all, whatever becomes of each."""
        errors = []
        for engine in self:
            try:
                await engine.aclose()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
