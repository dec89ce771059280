"""The server: HTTP dialects in front of engines that run as processes of their own. No torch in this process."""
