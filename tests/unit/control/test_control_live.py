"""Live news: one snapshot for every listener, none without any."""

import asyncio

from slmops.control.live import Live


async def first_of(live: Live) -> str | None:
    async for text in live.listen(heartbeat_s=5.0):
        return text
    return None


def test_every_listener_gets_the_same_snapshot() -> None:
    async def story() -> None:
        live = Live()
        listeners = [asyncio.create_task(first_of(live)) for _ in range(3)]
        assert await live.wait_for_news()
        await live.publish("fleet")
        assert await asyncio.gather(*listeners) == ["fleet"] * 3

    asyncio.run(story())


def test_nothing_is_built_while_nobody_listens() -> None:
    async def story() -> None:
        live = Live()
        waiting = asyncio.create_task(live.wait_for_news())
        for _ in range(3):
            live.poke()
            await asyncio.sleep(0)
        assert not waiting.done()
        listener = asyncio.create_task(first_of(live))
        assert await waiting
        await live.publish("now")
        assert await listener == "now"

    asyncio.run(story())


def test_silence_is_filled_with_signs_of_life_and_close_ends_it() -> None:
    async def story() -> None:
        live = Live()
        got: list[str | None] = []

        async def listen() -> None:
            got.extend([text async for text in live.listen(heartbeat_s=0.01)])

        listener = asyncio.create_task(listen())
        await asyncio.sleep(0.05)
        live.close()
        assert not await live.wait_for_news()
        await live.end()
        await asyncio.wait_for(listener, 1.0)
        assert got
        assert set(got) == {None}

    asyncio.run(story())
