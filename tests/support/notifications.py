"""A browser that allows notifications, and notes them."""

from __future__ import annotations

NOTIFICATIONS = """
    window.asked = 0; window.notices = [];
    window.Notification = class {
      static permission = "default";
      static requestPermission() { asked += 1; return Promise.resolve("granted"); }
      constructor(title, options) { notices.push([title, options.body]); }
      close() {}
    };
"""
"""A script for a page: `asked` counts the requests for the permission, `notices` has title and body of each."""
