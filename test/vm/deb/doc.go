// Package deb installs the Debian package in a guest, as an administrator does, and judges it there.
package deb
