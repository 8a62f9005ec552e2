"""Keys of export: where the merged model goes and in which pieces."""

from typing import Literal

from pydantic import Field

from danlu.core.config import StrictConfig


class ExportConfig(StrictConfig):
    """What `danlu export` writes."""

    export_dir: str | None = Field(None, description="Folder for the merged model.")
    export_size: int = Field(5, ge=1, description="Largest weight file in GB.")
    export_device: Literal["cpu", "auto"] = Field("cpu", description="Where the merge is computed; auto takes a GPU.")
