"""Pure functions of parameters that edit: the way back along the flow, and forth."""

import numbers
from typing import NamedTuple

from jaxtyping import Array, Float, Int

from flowtok_jax.array_types import CaptionIds, Image, Key, Params, Tokens
from flowtok_jax.flow import editing
from flowtok_jax.flow.samplers import END
from flowtok_jax.models.build import Nets
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.sampling import Programs, SampleOptions, guided_flow


def check_share(name: str, value: float) -> None:
    """Refuses what is no share.

    Raises:
        UserError: naming it.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:
        raise UserError(f"{name} is {value!r}; expected a number from 0 to 1")


class EditOptions(NamedTuple):
    """The way back and forth; each choice of options is one compiled program.

    Attributes:
        num_steps: steps of the whole path, of which the way has a share.
        scale: strength of the guidance, 1 for none.
        solver: a name of flow.editing.ROUTES.
        way: share of the path that is gone back, from 0 to 1.
        batch_size: rows of the program.
    """

    num_steps: int = 40
    scale: float = 1.0
    solver: str = "midpoint"
    way: float = 1.0
    batch_size: int = 64

    def check(self) -> "EditOptions":
        """Validates the options and returns them unchanged.

        Raises:
            UserError: naming the option.
        """
        # What drawing has too is checked as there.
        shared = {k: v for k, v in self._asdict().items() if k in SampleOptions._fields}
        SampleOptions(**(shared | {"solver": "euler"})).check()
        if self.solver not in editing.ROUTES:
            raise UserError(
                f"solver is {self.solver!r}; expected one of "
                f"{', '.join(editing.ROUTES)}"
            )
        check_share("strength", self.way)  # its name where it is chosen
        return self

    @property
    def span(self) -> tuple[float, float]:
        """Times between which the way leads."""
        return END * (1 - self.way), END

    @property
    def steps(self) -> int:
        """Number of steps on the way."""
        return max(1, round(self.num_steps * self.way))


class EditPrograms(NamedTuple):
    """Pure functions of the way back and of the way forth."""

    nets: Nets
    programs: Programs

    def _flow(self, params: Params, options: EditOptions) -> tuple:
        velocity, prepare = guided_flow(self.nets, params, "t2i", options.scale)
        return velocity, options.steps, prepare, options.span

    def way_back(
        self,
        params: Params,
        images: Image,
        ids: CaptionIds,
        key: Key,
        rows: Int[Array, " b"],
        *,
        options: EditOptions,
    ) -> tuple[editing.State, Tokens, Image, Float[Array, " b"]]:
        """Takes images back, and forth again to see whether the loop closes.

        Returns:
            The state there, the images' own raw tokens, what the loop ended with as
            images, and how far from where it began.
        """
        del key, rows  # nothing is drawn
        route = editing.ROUTES[options.solver]
        velocity, *way = self._flow(params, options)
        # The mean, as a sample would not come back to the image.
        raw = self.programs.encode(params, images).mean
        z_img = raw * self.nets.tokenizer.latent_scale
        state = route.back(velocity, (z_img,) * route.states, *way)
        again = route.forth(velocity, state, *way)[0]  # of a pair y
        tokens = again / self.nets.tokenizer.latent_scale
        copies = self.programs.decode(params, tokens, ids)
        return state, raw, copies, editing.relative_l2(again, z_img)

    def way_forth(
        self,
        params: Params,
        ids: CaptionIds,
        *rest: Array,
        options: EditOptions,
    ) -> tuple[Image, Tokens]:
        """Takes a state forth, with new captions: images and their raw tokens.

        Args:
            rest: the state's arrays, then the key and the rows' numbers.
        """
        *state, _, _ = rest  # nothing is drawn
        route = editing.ROUTES[options.solver]
        velocity, *way = self._flow(params, options)
        z_img = route.forth(velocity, tuple(state), *way)[0]
        tokens = z_img / self.nets.tokenizer.latent_scale
        return self.programs.decode(params, tokens, ids), tokens
