"""Environments of other packages, against the packages: by hand, and through the engine."""

import json
import sys
import threading
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from itertools import islice
from types import SimpleNamespace

import jax
import pytest

from r1jax.environments.adapters import openenv, textarena, verifiers
from r1jax.errors import UsageError
from r1jax.types import Environments, Problem, Sample, Step, Weights
from tests.shared.engines import make_engine

GARBAGE = ["", "[", "]][[", "no move at all", "\x00\n[99999999999999999999]", "é" * 500, '{"message": 3}']


def take(draw, n: int = 3, split: str = "train", seed: int = 0) -> list[Problem]:
    return list(islice(draw(split, seed), n))


def play(make, problem: Problem, turns: list[str]) -> list[Step]:
    """The answers to the turns, up to the end of the episode."""
    environment, steps = make(), []
    environment.reset(problem, 0)
    for turn in turns:
        steps.append(environment.step(turn))
        if steps[-1].done:
            break
    return steps


def check_problems(draw, make) -> None:
    """They are a function of split and seed, and an environment begins as its problem says, from JSON alone."""
    drawn = take(draw)
    assert drawn == take(draw) and [p.id for p in drawn] == [0, 1, 2]
    for problem in drawn:
        make().reset(problem, 1)
        with pytest.raises(ValueError, match="expected its problem's question"):
            make().reset(Problem(0, problem.question + "?", problem.answer, "en"), 1)


class TestTextArena:
    @pytest.fixture(autouse=True)
    def package(self):
        pytest.importorskip("textarena", reason="the extra textarena is not installed: requirements-environments.txt")

    def test_problems(self):
        draw = textarena.problems("Secretary-v0")  # its first value is drawn
        check_problems(draw, textarena.TextArenaEnvironment)
        splits = [
            {json.loads(p.answer)["seed"] for s in (0, 1) for p in take(draw, 50, k, s)} for k in ("train", "test")
        ]
        assert not splits[0] & splits[1] and len(splits[0]) == len(splits[1]) == 100

    def test_right_moves_end_with_the_games_reward(self):
        [problem] = take(textarena.problems("GuessTheNumber-v0", max_number=9), 1)
        assert "between 1 and 9" in problem.question
        low, high, steps = 1, 9, []
        while not steps or not steps[-1].done:
            guesses = [*(f"[{guess}]" for guess in guessed(steps, low, high))]
            steps = play(textarena.TextArenaEnvironment, problem, guesses)
        assert steps[-1].reward == 1 and "guessed the correct number" in steps[-1].observation
        assert all(step.reward is None and step.observation.count("The target number is") == 1 for step in steps[:-1])

    def test_wrong_moves(self):
        [problem] = take(textarena.problems("TowerOfHanoi-v0", num_disks=1, max_turns=3), 1)
        [step] = play(textarena.TextArenaEnvironment, problem, ["[A C]"])
        assert (step.done, step.reward) == (True, 1)
        steps = play(
            textarena.TextArenaEnvironment, problem, ["[A B]", "[B A]"] * 2
        )  # the limit ends the turn behind it
        assert [(s.done, s.reward) for s in steps] == [(False, None)] * 3 + [(True, 0)]
        assert "moved disk 1 from A to B" in steps[0].observation and "[A B]" not in steps[0].observation
        steps = play(textarena.TextArenaEnvironment, problem, ["[C A]", "[C A]"])  # the second invalid move loses
        assert "invalid move" in steps[0].observation and (steps[1].done, steps[1].reward) == (True, 0)

    @pytest.mark.parametrize("game", ["GuessTheNumber-v0", "TowerOfHanoi-v0", "2048-v0-ultra-easy", "FrozenLake-v0"])
    def test_garbage_is_an_invalid_move(self, game):
        for problem in take(textarena.problems(game)):
            for text in GARBAGE:
                steps = play(textarena.TextArenaEnvironment, problem, [text] * 3)
                assert steps[-1].done and all(step.observation for step in steps)

    def test_threads_do_not_mix_random_numbers(self):
        """2048 draws a tile after each move."""
        problems = take(textarena.problems("2048-v0-ultra-easy"), 8)
        moves = ["[left]", "[up]", "[right]", "[down]"] * 3

        def played(problem: Problem) -> list[Step]:
            return play(textarena.TextArenaEnvironment, problem, moves)

        alone = [played(problem) for problem in problems]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(played, problems)) == alone
        assert len({str(steps) for steps in alone}) > 1

    def test_only_single_player_games(self):
        with pytest.raises(UsageError, match="several players"):
            take(textarena.problems("PublicGoodsGame-v0"))

    def test_through_the_engine(self, one_device, model, policy):
        class Guessing(textarena.TextArenaEnvironment):
            """Reads a guess into whatever the policy says; a guess that was made before is invalid."""

            def step(self, turn: str) -> Step:
                return super().step(f"[{1 + len(turn) % 7}]")

        def encode(text: str) -> list[int]:
            return [8 + b % 100 for b in text.encode()]

        problems = take(textarena.problems("GuessTheNumber-v0", max_number=7), 2)
        prompts = [(problem, [9, 10, 11 + i]) for i, problem in enumerate(problems)]
        numbers = {
            "max_turn_tokens": 40,
            "max_turns": 3,
            "append_rows": 3,
            "new": 900,
            "stop_ids": (*range(8, 200, 6),),
        }

        def draw(threads: int) -> list[Sample]:
            environments = Environments(Guessing, encode)
            engine = make_engine(
                one_device, model, eos=2, environments=environments, environment_threads=threads, **numbers
            )
            return [s for group in engine.generate(Weights(*policy), prompts, jax.random.key(0)) for s in group]

        samples = draw(8)
        assert [(s.tokens, s.turns) for s in samples] == [(s.tokens, s.turns) for s in draw(1)]
        assert {s.finish_reason for s in samples} >= {"stop", "turns"}
        for sample in samples:
            assert (sample.turns[-1].reward is not None) == (sample.finish_reason == "stop")
            for turn, after in zip(sample.turns, sample.turns[1:], strict=False):
                assert sample.tokens[turn.stop : after.start] == encode(turn.observation) and turn.reward is None


def guessed(steps: list[Step], low: int, high: int) -> Iterator[int]:
    """A binary search: the guesses that were answered so far, and one more."""
    for step in [*steps, None]:
        guess = (low + high) // 2
        yield guess
        if step is not None:
            low, high = (guess + 1, high) if "higher" in step.observation else (low, guess - 1)


class TestOpenEnv:
    @pytest.fixture(scope="class")
    def package(self):
        return pytest.importorskip("openenv.core", reason="the extra openenv is not installed")

    @pytest.fixture(scope="class")
    def echo(self, package) -> SimpleNamespace:
        """The environment that `openenv init` writes: it echoes, 0.1 for a character, and never ends."""
        folder = files("openenv.cli") / "templates" / "openenv_env"
        models, server = types.ModuleType("models"), types.ModuleType("server")
        with pytest.MonkeyPatch.context() as patch:  # outside of a package the server imports `models`
            patch.setitem(sys.modules, "models", models)
            for module, file in ((models, "models.py"), (server, "server/__ENV_NAME___environment.py")):
                exec((folder / file).read_text().replace("__ENV_CLASS_NAME__", "Echo"), vars(module))
        return SimpleNamespace(make=server.EchoEnvironment, act=lambda text: models.EchoAction(message=text))

    @pytest.fixture(scope="class")
    def counting(self, package) -> type:
        """Says a number; the right answer is the next one."""
        types_ = package.env_server.types

        class Answer(types_.Action):
            number: int

        class Number(types_.Observation):
            number: int

        class Counting(package.env_server.interfaces.Environment):
            SUPPORTS_CONCURRENT_SESSIONS = True
            action, observation = Answer, Number

            def reset(self, seed=None, episode_id=None, **kwargs):
                self.number, self.right = seed % 100, 0
                return Number(number=self.number)

            def step(self, action, timeout_s=None, **kwargs):
                right, self.number = action.number == self.number + 1, self.number + 2
                self.right += right
                return Number(number=self.number, reward=float(right), done=not right or self.right == 2)

            @property
            def state(self):
                return types_.State(step_count=self.right)

        return Counting

    def test_echo_in_this_process(self, echo):
        def make() -> openenv.OpenEnvEnvironment:
            return openenv.OpenEnvEnvironment(echo.make, echo.act)

        draw = openenv.problems(echo.make)
        check_problems(draw, make)
        steps = play(make, take(draw, 1)[0], ["abc", *GARBAGE])
        assert [step.reward for step in steps] == [min(len(text) * 0.1, 1.0) for text in ["abc", *GARBAGE]]
        assert json.loads(steps[0].observation) == {"echoed_message": "abc", "message_length": 3}
        assert not any(step.done for step in steps)

    def test_counting(self, counting):
        self.count(counting, lambda turn: counting.action(number=int(turn)))

    def test_counting_behind_a_server(self, counting, package):
        import uvicorn

        app = package.create_fastapi_app(counting, counting.action, counting.observation, max_concurrent_envs=16)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            self.count(
                lambda: package.GenericEnvClient(base_url=f"http://127.0.0.1:{port}").sync(),
                lambda turn: {"number": int(turn)},
            )
        finally:
            server.should_exit = True
            thread.join()

    def count(self, start, act) -> None:
        def make() -> openenv.OpenEnvEnvironment:
            return openenv.OpenEnvEnvironment(start, act)

        draw = openenv.problems(start)
        check_problems(draw, make)
        [problem] = take(draw, 1)
        n = json.loads(problem.question)["number"]
        assert json.loads(problem.answer)["seed"] % 100 == n
        steps = play(make, problem, [str(n + 1), str(n + 3)])
        assert steps == [Step(json.dumps({"number": n + 2 * k}), k == 2, 1.0) for k in (1, 2)]
        [_, wrong] = play(make, problem, [str(n + 1), "0"])
        assert (wrong.done, wrong.reward) == (True, 0.0)
        steps = play(make, problem, [*(text for text in GARBAGE), str(n + 1)])
        assert all("Invalid action" in step.observation and not step.done for step in steps[:-1])
        assert steps[-1].reward == 1.0

    def test_tasks_of_a_split(self, counting):
        def resets(split: str, seed: int) -> Iterator[dict]:
            return ({"seed": 7, "index": index} for index in range(2))

        assert [json.loads(p.answer) for p in take(openenv.problems(counting, resets=resets))] == [
            {"seed": 7, "index": 0},
            {"seed": 7, "index": 1},
        ]


class TestVerifiers:
    @pytest.fixture
    def vf(self, monkeypatch):
        """verifiers, with installed tasksets: `sums` of one turn, `chains` of several, and one for each refusal."""
        vf = pytest.importorskip(
            "verifiers.v1", reason="the extra verifiers is not installed: requirements-environments.txt"
        )

        class Data(vf.TaskData):
            numbers: list[int]

        class Sum(vf.Task[Data]):
            @vf.reward(weight=2.0)
            async def right(self, trace) -> float:
                return float(trace.last_reply == str(sum(self.data.numbers)))

            @vf.reward
            async def short(self, task, trace) -> float:
                return 0.5 if trace.num_turns == 1 and len(trace.last_reply) < 4 else 0.0

        class Sums(vf.Taskset[Sum, vf.TasksetConfig]):
            def load(self):
                for i in range(5):
                    yield Sum(Data(prompt=f"{i} + 1 = ?", system_prompt="Add.", numbers=[i, 1]), self.config.task)

        class Chain(vf.Task[Data]):
            @vf.reward
            async def right(self, trace) -> float:
                total = sum(self.data.numbers)
                assert [m.role for m in trace.messages] == ["user", "assistant"] * trace.num_turns
                return float(trace.last_reply == str(total))

        class Chains(vf.Taskset[Chain, vf.TasksetConfig]):
            INFINITE = True

            def load(self):
                i = 0
                while True:
                    i += 1
                    yield Chain(Data(prompt=None, numbers=[i, 2, 3]), self.config.task)

        class PlayerConfig(vf.EnvConfig):
            player: vf.AgentConfig = vf.AgentConfig()

        class Chaining(vf.Env[PlayerConfig]):
            """Gives one number a turn, while the policy answers with the sum so far."""

            async def run(self, task, agents):
                total = 0
                async with agents.player.interaction(task) as interaction:
                    for number in task.data.numbers:
                        total += number
                        segment = await interaction.turn(f"add {number}")
                        if segment.last_reply != str(total):
                            break
                interaction.trace.record_reward("turns", interaction.trace.num_turns, 0.1)

            async def finalize(self, task, episode):
                [trace] = episode.traces
                trace.record_reward("finalized", 10.0)

        class Boxed(Sum):
            async def setup(self, trace, runtime):
                await runtime.run(["true"], {})

        class BoxedSums(vf.Taskset[Boxed, vf.TasksetConfig]):
            def load(self):
                yield Boxed(Data(prompt="", numbers=[1]), self.config.task)

        class Stopped(Sum):
            @vf.stop
            async def stops(self, trace: vf.Trace) -> bool:
                return True

        class StoppedSums(vf.Taskset[Stopped, vf.TasksetConfig]):
            def load(self):
                yield Stopped(Data(prompt="", numbers=[1]), self.config.task)

        installed = {"sums": [Sums], "chains": [Chains, Chaining], "boxed": [BoxedSums], "stopped": [StoppedSums]}
        for name, classes in installed.items():
            module = types.ModuleType(name)
            vars(module).update({c.__name__: c for c in classes}, __all__=[c.__name__ for c in classes])
            monkeypatch.setitem(sys.modules, name, module)
        verifiers.load.cache_clear()
        return vf

    def test_one_turn(self, vf):
        draw = verifiers.problems({"taskset": {"id": "sums"}})
        check_problems(draw, verifiers.VerifiersEnvironment)
        problems = take(draw, 9)
        assert sorted(p.question for p in problems) == [f"Add.\n\n{i} + 1 = ?" for i in range(5)]
        assert problems != take(draw, 9, seed=1)
        [problem] = [p for p in problems if "2 + 1" in p.question]
        for turn, reward in [("3", 2.5), (" 3\n", 2.5), ("4", 0.5), ("a long answer", 0.0)]:
            assert play(verifiers.VerifiersEnvironment, problem, [turn]) == [Step(done=True, reward=reward)]
        for text in GARBAGE:
            [step] = play(verifiers.VerifiersEnvironment, problem, [text])
            assert step.done and step.reward <= 0.5

    def test_several_turns(self, vf):
        draw = verifiers.problems({"taskset": {"id": "chains"}})
        check_problems(draw, verifiers.VerifiersEnvironment)
        problem = take(draw)[1]
        assert problem.question == "add 2"
        steps = play(verifiers.VerifiersEnvironment, problem, ["2", "4", "7"])
        assert steps[:2] == [Step("add 2"), Step("add 3")]
        assert steps[2].done and steps[2].reward == pytest.approx(1 + 0.3 + 10)
        [step] = play(verifiers.VerifiersEnvironment, problem, ["3"])
        assert step.done and step.reward == pytest.approx(0.1 + 10)

    def test_mathematics_is_verified_in_threads(self, vf):
        verifiers.load('{"taskset": {"id": "sums"}}')
        with ThreadPoolExecutor(1) as pool:
            texts, expected = (r"\boxed{\frac{1}{2}}", r"\boxed{2}", r"\boxed{", ""), [1.0, 0.0, 0.0, 0.0]
            assert [pool.submit(vf.verify_boxed_math_answer, text, "0.5").result() for text in texts] == expected

    def test_splits(self, vf):
        draw = verifiers.problems({"taskset": {"id": "sums"}}, {"taskset": {"id": "chains"}})
        assert take(draw, 1, "test")[0].question == "add 1" and "Add" in take(draw, 1)[0].question

    def test_turns_in_other_threads_and_an_episode_left_alone(self, vf):
        """Each turn is answered in a thread of its own; what is left alone is closed without complaint."""
        environment = verifiers.VerifiersEnvironment()
        environment.reset(take(verifiers.problems({"taskset": {"id": "chains"}}), 1)[0], 0)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(environment.step, "1").result() == Step("add 2")
        loop = environment.loop
        del environment
        assert loop.is_closed()

    @pytest.mark.parametrize(
        "config, error",
        [
            ({"taskset": {"id": "stopped"}}, "stop conditions"),
            ({"taskset": {"id": "boxed"}}, "run of verifiers' runtime"),
            ({"taskset": {"id": "sums"}, "id": "user-sim"}, "assistant.*user"),
        ],
    )
    def test_what_needs_more_than_messages_is_refused(self, vf, config, error):
        with pytest.raises(UsageError, match=error):
            take(verifiers.problems(config))

    def test_a_second_rollout_is_refused(self, vf):
        [problem] = take(verifiers.problems({"taskset": {"id": "sums"}, "id": "best-of-n"}), 1)
        with pytest.raises(ExceptionGroup) as error:  # best-of-n starts its rollouts together
            play(verifiers.VerifiersEnvironment, problem, ["1"])
        assert error.group_contains(UsageError, match="a second rollout")


@pytest.mark.parametrize(
    "module, draw, extra",
    [
        ("textarena", lambda: textarena.problems("Wordle-v0"), "textarena"),
        ("openenv.core.client_types", lambda: openenv.problems(object), "openenv"),
        ("verifiers.v1", lambda: verifiers.problems({"taskset": {"id": "sums"}}), "verifiers"),
    ],
)
def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch, module, draw, extra):
    verifiers.load.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"pip install '.\[{extra}\]'"):
        take(draw())
