"""Artefacts by digest: an OCI image layout on disk, signed with TUF metadata."""
