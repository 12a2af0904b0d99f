"""OWL-ViT: a CLIP whose image patches are kept, each of them a possible object.

    image -> patches after CLS -> transformer -> patches x CLS -> LayerNorm -> merged map (h, w, d)
    text  -> tokens -> causal transformer -> at the end token -> projection -> unit query
    merged map x queries -> class logits;  merged map -> boxes

Reference: Minderer et al., Simple Open-Vocabulary Object Detection, arXiv 2205.06230.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.layers import LayerNorm, bert_init, gelu, unit
from spatial_clap_jax.models.vit import VitBlocks, kernel_init, token_init

# Added to lengths of vectors, as both public codes do.
_TINY = 1e-6
# Keeps a box's logit finite at the edges of the image.
_EDGE = 1e-4
# The logit of a query that is none.
_NO_QUERY = float(np.finfo(np.float32).min)


@dataclasses.dataclass(frozen=True)
class OwlVitImageConfig:
    """Sizes of an `OwlVitImageTower`; the defaults are those of ViT-B/32 at 768 pixels.

    Attributes:
      image_size: height and width in pixels, multiples of `patch`.
      patch: side of a patch in pixels.
      width: width of a token.
      layers: transformer blocks.
      heads: attention heads; divides `width`.
      mlp_width: hidden width of the MLPs.
      layer_norm_epsilon: added to the variance.
      merged_epsilon: the same in the norm of the merged map: 1e-5 in Hugging Face's code, 1e-6 in
        the original.
    """

    image_size: tuple[int, int] = (768, 768)
    patch: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    layer_norm_epsilon: float = 1e-5
    merged_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.patch < 1 or any(side < 1 or side % self.patch for side in self.image_size):
            raise InputError(
                f"OwlVitImageConfig.image_size: {self.image_size} with patches of {self.patch} "
                "pixels; height and width must be multiples of the patch."
            )
        _check_heads("OwlVitImageConfig", self.width, self.heads)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_size
        return height // self.patch, width // self.patch


@dataclasses.dataclass(frozen=True)
class OwlVitTextConfig:
    """Sizes of an `OwlVitTextTower`; the defaults are those beside ViT-B.

    Attributes:
      vocabulary: number of token ids, of which the end token is the highest.
      width: width of a token.
      layers: transformer blocks.
      heads: attention heads; divides `width`.
      mlp_width: hidden width of the MLPs.
      max_tokens: longest text, begin and end token included.
      layer_norm_epsilon: added to the variance.
    """

    vocabulary: int = 49_408
    width: int = 512
    layers: int = 12
    heads: int = 8
    mlp_width: int = 2048
    max_tokens: int = 16
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        _check_heads("OwlVitTextConfig", self.width, self.heads)


@dataclasses.dataclass(frozen=True)
class OwlVitConfig:
    """Sizes and habits of an `OwlVit`.

    Attributes:
      image: image tower.
      text: text tower; queries have its width.
      joint_width: width of image and text embeddings of a whole image.
      box_gelu: activation of the box head: 'exact' in Hugging Face's code, 'tanh' in the original.
    """

    image: OwlVitImageConfig = dataclasses.field(default_factory=OwlVitImageConfig)
    text: OwlVitTextConfig = dataclasses.field(default_factory=OwlVitTextConfig)
    joint_width: int = 512
    box_gelu: Literal["exact", "tanh"] = "exact"

    def __post_init__(self) -> None:
        if self.joint_width != self.text.width:
            raise InputError(
                f"OwlVitConfig.joint_width: {self.joint_width}, but the class head compares "
                f"patches with texts in the {self.text.width} of the text tower; give that."
            )


def owlvit_base_patch32() -> OwlVitConfig:
    """ViT-B/32 at 768 pixels: 577 tokens an image."""
    return OwlVitConfig()


def owlvit_base_patch16() -> OwlVitConfig:
    """ViT-B/16 at 768 pixels: 2305 tokens an image."""
    return OwlVitConfig(image=OwlVitImageConfig(patch=16))


def owlvit_large_patch14() -> OwlVitConfig:
    """ViT-L/14 at 840 pixels: 3601 tokens an image."""
    return OwlVitConfig(
        image=OwlVitImageConfig((840, 840), 14, 1024, 24, 16, 4096),
        text=OwlVitTextConfig(width=768, heads=12, mlp_width=3072),
        joint_width=768,
    )


class OwlVitOutput(NamedTuple):
    """What an `OwlVit` says of images; the p patches are in rows.

    Attributes:
      map: merged patches.
      logits: of every patch and query.
      boxes: of every patch: centre x, centre y, width, height, in shares of the image.
      class_embeddings: of every patch, unit, in the queries' space.
    """

    map: Float[Array, "b h w d"]
    logits: Float32[Array, "b p q"]
    boxes: Float32[Array, "b p 4"]
    class_embeddings: Float[Array, "b p e"]


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the logistic function of 1.702 x, CLIP's approximation of the GELU."""
    return x * nn.sigmoid(1.702 * x)


def image_patches(images: Float[Array, "b y x c"], patch: int) -> Float[Array, "b h w _"]:
    """Patches of images side by side, as vectors.

    Args:
      images: pixels.
      patch: side of a patch; divides height and width.

    Returns:
      Of each patch the rows of its first channel, then those of the next, as in a convolution
      over [channels, rows, columns].
    """
    b, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    cut = images.reshape(b, rows, patch, columns, patch, channels).transpose(0, 1, 3, 5, 2, 4)
    return cut.reshape(b, rows, columns, channels * patch * patch)


def box_bias(rows: int, columns: int) -> Float32[np.ndarray, "p 4"]:
    """Logits of boxes that are one patch large and end where their patch does.

    Args:
      rows: of the patch grid.
      columns: of it.

    Returns:
      Centre x, centre y, width and height of each patch, row by row.

    Reference: both public codes put a box's centre at the lower right corner of its patch.

    Example:
      >>> (1 / (1 + np.exp(-box_bias(1, 2)[0]))).round(3).tolist()
      [0.5, 1.0, 0.5, 1.0]
    """
    y, x = np.meshgrid(np.arange(1, rows + 1), np.arange(1, columns + 1), indexing="ij")
    ones = np.ones_like(x)
    shares = [x / columns, y / rows, ones / columns, ones / rows]
    share = np.stack(shares, axis=-1).reshape(-1, 4).astype(np.float32)
    edge = np.float32(_EDGE)
    return np.log(share + edge) - np.log1p(-share + edge)


class OwlVitImageTower(nn.Module):
    """Image tower: what stands where, a vector a patch. Its initialisers are our choice.

    Attributes:
      config: sizes.
      dtype: compute type; parameters are float32.
    """

    config: OwlVitImageConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        rows, columns = config.grid
        self.patch = nn.Dense(
            config.width, use_bias=False, dtype=self.dtype, kernel_init=kernel_init
        )
        self.cls_token = self.param("cls_token", token_init, (config.width,))
        shape = (1 + rows * columns, config.width)
        self.positions = self.param("positions", token_init, shape)
        self.norm_before = LayerNorm(config.layer_norm_epsilon, dtype=self.dtype)
        self.blocks = _clip_blocks(config, self.dtype)
        self.merged_norm = LayerNorm(config.merged_epsilon, dtype=self.dtype)

    def __call__(
        self, images: Float[Array, "b y x 3"], train: bool = False
    ) -> Float[Array, "b h w d"]:
        """The merged map of images; see `tokens` and `merged`. Nothing depends on `train`."""
        return self.merged(self.tokens(images))

    def tokens(self, images: Float[Array, "b y x 3"]) -> Float[Array, "b n d"]:
        """CLS and all patches, after the last norm.

        Args:
          images: red, green and blue of `config.image_size`, normalised as in training; see
            `data.images.clip_normalised`.

        Raises:
          InputError: images of another size.
        """
        config = self.config
        if images.shape[1:3] != config.image_size:
            raise InputError(
                f"images: {images.shape[1]} x {images.shape[2]} pixels, but the image tower takes "
                f"{config.image_size[0]} x {config.image_size[1]}; resize them."
            )
        patches = self.patch(image_patches(images, config.patch))
        b, width = images.shape[0], config.width
        cls = jnp.broadcast_to(self.cls_token.astype(self.dtype), (b, 1, width))
        x = jnp.concatenate([cls, patches.reshape(b, -1, width)], axis=1)
        return self.blocks(self.norm_before(x + self.positions.astype(self.dtype)))

    def merged(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b h w d"]:
        """Patches, each times CLS, normalised: an image's features at every place.

        Args:
          tokens: what `tokens` gave.
        """
        merged = self.merged_norm(tokens[:, 1:] * tokens[:, :1])
        return merged.reshape(tokens.shape[0], *self.config.grid, -1)


class OwlVitTextTower(nn.Module):
    """Text tower: CLIP's, in which a token sees those before it.

    Attributes:
      config: sizes.
      dtype: compute type; parameters are float32.
    """

    config: OwlVitTextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "b n"]) -> Float[Array, "b d"]:
        """What a text says, read off its end token.

        Args:
          tokens: ids of begin token, text, end token, padding; what stands in the padding never
            matters but that it is no higher than the end token.

        Raises:
          InputError: more tokens than there are positions for.
        """
        config, count = self.config, tokens.shape[1]
        if count > config.max_tokens:
            raise InputError(
                f"tokens: {count} a text, but the text tower takes at most {config.max_tokens}; "
                "shorten the texts."
            )
        embed = functools.partial(nn.Embed, features=config.width, embedding_init=bert_init)
        x = embed(config.vocabulary, name="tokens")(tokens)
        x = x + embed(config.max_tokens, name="positions")(jnp.arange(count))
        hidden = np.triu(np.full((count, count), np.finfo(np.float32).min / 2), k=1)
        blocks = _clip_blocks(config, self.dtype, name="blocks")
        x = blocks(x, bias=jnp.asarray(hidden, jnp.float32))
        ends = jnp.argmax(tokens, axis=1)
        return jnp.take_along_axis(x, ends[:, None, None], axis=1)[:, 0]


class ClassHead(nn.Module):
    """Logits of patches against queries: a cosine, shifted and scaled by what the patch is.

    Attributes:
      width: of the queries.
      dtype: compute type; parameters are float32.
    """

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, patches: Float[Array, "b p d"], queries: Float[Array, "*b q e"]
    ) -> tuple[Float32[Array, "b p q"], Float[Array, "b p e"]]:
        """Compares every patch with every query.

        Args:
          patches: of the merged map.
          queries: one set for all images, or one an image.

        Returns:
          The logits, and unit class embeddings of the patches.
        """
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=kernel_init)
        embeddings = _unit_but_for_a_little(dense(self.width, name="embedding")(patches))
        queries = _unit_but_for_a_little(queries.astype(self.dtype))
        cosines = jnp.matmul(embeddings, queries.mT, preferred_element_type=jnp.float32)
        shift = dense(1, name="shift")(patches).astype(jnp.float32)
        scale = nn.elu(dense(1, name="scale")(patches).astype(jnp.float32)) + 1
        return (cosines + shift) * scale, embeddings


class BoxHead(nn.Module):
    """Boxes of patches: three dense layers.

    Attributes:
      gelu: see `OwlVitConfig.box_gelu`.
      dtype: compute type; parameters are float32.
    """

    gelu: Literal["exact", "tanh"] = "exact"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, map: Float[Array, "b h w d"]) -> Float32[Array, "b p 4"]:
        """Centre x, centre y, width and height of each patch's box, in shares of the image."""
        b, rows, columns, width = map.shape
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=kernel_init)
        activation = gelu if self.gelu == "exact" else functools.partial(nn.gelu, approximate=True)
        x = map.reshape(b, -1, width)
        for index in range(2):
            x = activation(dense(width, name=f"hidden_{index}")(x))
        x = dense(4, name="out")(x).astype(jnp.float32)
        return nn.sigmoid(x + box_bias(rows, columns))


class OwlVit(nn.Module):
    """Both towers and both heads: objects in images, by their descriptions.

    Attributes:
      config: sizes and habits.
      dtype: compute type; parameters are float32.
    """

    config: OwlVitConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        project = functools.partial(
            nn.Dense, config.joint_width, use_bias=False, dtype=self.dtype, kernel_init=kernel_init
        )
        self.image = OwlVitImageTower(config.image, self.dtype)
        self.text = OwlVitTextTower(config.text, self.dtype)
        self.image_projection = project()
        self.text_projection = project()
        # CLIP's, of images as wholes.
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(1 / 0.07)), ())
        self.class_head = ClassHead(config.text.width, self.dtype)
        self.box_head = BoxHead(config.box_gelu, self.dtype)

    def __call__(
        self, images: Float[Array, "b y x 3"], tokens: Int[Array, "*b q n"]
    ) -> OwlVitOutput:
        """Says of every patch of every image which text describes it, and what box it is.

        Args:
          images: see `OwlVitImageTower.tokens`.
          tokens: of q texts for all images, or of q an image; a text whose first token is 0 is
            none, its logits are the lowest number.
        """
        if self.is_initializing():
            # Detection asks nothing of whole images; what does is drawn all the same.
            self.image_projection(jnp.zeros((1, self.config.image.width)))
        return self.detect(self.image(images), self.embed_text(tokens), tokens)

    def detect(
        self,
        map: Float[Array, "b h w d"],
        queries: Float[Array, "*b q e"],
        tokens: Int[Array, "*b q n"],
    ) -> OwlVitOutput:
        """The heads alone; see the call.

        Args:
          map: merged map.
          queries: what `embed_text` gave.
          tokens: of these queries.
        """
        patches = map.reshape(map.shape[0], -1, map.shape[-1])
        logits, embeddings = self.class_head(patches, queries)
        logits = jnp.where((tokens[..., 0] > 0)[..., None, :], logits, _NO_QUERY)
        return OwlVitOutput(map, logits, self.box_head(map), embeddings)

    def embed_text(self, tokens: Int[Array, "*b q n"]) -> Float[Array, "*b q e"]:
        """Unit embeddings of texts."""
        rows = self.text(tokens.reshape(-1, tokens.shape[-1]))
        return unit(self.text_projection(rows)).reshape(*tokens.shape[:-1], -1)

    def similarity(
        self, images: Float[Array, "b y x 3"], tokens: Int[Array, "q n"]
    ) -> Float[Array, "b q"]:
        """Scaled cosines of images as wholes and texts, the CLIP that detection began with."""
        whole = unit(self.image_projection(self.image.tokens(images)[:, 0]))
        return jnp.exp(self.logit_scale) * (whole @ self.embed_text(tokens).T)


def _clip_blocks(
    config: OwlVitImageConfig | OwlVitTextConfig, dtype: DTypeLike, name: str | None = None
) -> VitBlocks:
    sizes = (config.layers, config.heads, config.mlp_width, config.layer_norm_epsilon)
    return VitBlocks(*sizes, dtype, quick_gelu, name=name)


def _unit_but_for_a_little(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + _TINY)


def _check_heads(name: str, width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise InputError(
            f"{name}.heads: {heads} does not divide the width {width}; choose a divisor."
        )
