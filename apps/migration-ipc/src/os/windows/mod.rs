//! Windows.

mod files;
mod folders;
mod names;
mod processes;

use std::io;

use migration_ipc::transport::win32;

pub(crate) use files::{
    create_private_file, create_private_folders, flush_file, flush_folder, is_cloud_placeholder,
    is_locked, is_reparse_point, open_source, remove_file_or_link,
};
pub(crate) use folders::{
    agent_data_folder, documents_folder, prepare_private_folder, scratch_endpoint,
    service_data_folder,
};
pub(crate) use names::{from_hex, split_at_equals, to_hex};
pub(crate) use processes::{
    ParentWatch, StopSignals, own_account, own_process_group, session_name,
};

fn os_error(code: win32::Code) -> io::Error {
    io::Error::from_raw_os_error(code.cast_signed())
}
