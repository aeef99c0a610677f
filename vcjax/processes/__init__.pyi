from .parts import Part as Part
from .parts import chunk_digests as chunk_digests
from .parts import own_parts as own_parts
from .parts import whole_part as whole_part
